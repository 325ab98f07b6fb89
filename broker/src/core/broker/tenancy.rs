//! Administration of tenants and namespaces; `deletion` deletes namespaces.

use geminga_meta::keys::{self, Key};
use geminga_meta::read::{ReadError, read};
use geminga_meta::record::{NamespaceRecord, Nonce, Record, Stored, TenantRecord};
use geminga_meta::store::{Compare, MAX_RANGE, StoreError, Txn, TxnOutcome};
use geminga_meta::update_loop::{
    Change, Current, RetryPolicy, UpdateError, Witness, commit, update,
};
use geminga_proto::topic_name::{NamespaceName, TenantName};

use super::Broker;
use crate::core::admin::{AdminError, NamespaceInfo, NamespacePolicies};

/// The tenant and the namespace of short topic names.
const PUBLIC: (&str, &str) = ("public", "default");

impl From<ReadError> for AdminError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => Self::Metadata(error),
            ReadError::Record { key, error } => Self::Record(format!("{key}: {error}")),
        }
    }
}

/// What the failure of an update means to who asked for it.
pub(super) fn update_error(error: UpdateError<AdminError>) -> AdminError {
    match error {
        UpdateError::Refused(error) => error,
        UpdateError::Read(error) => error.into(),
        UpdateError::Store(error) => AdminError::Metadata(error),
        UpdateError::Record { key, error } => AdminError::Record(format!("{key}: {error}")),
        error @ UpdateError::Contended { .. } => {
            AdminError::Metadata(StoreError::Unavailable(error.to_string()))
        }
    }
}

fn plain(policies: &geminga_meta::record::NamespacePolicies) -> NamespacePolicies {
    NamespacePolicies {
        retention_ms: policies.retention_ms,
        retention_bytes: policies.retention_bytes,
        auto_topic_creation: policies.auto_topic_creation,
    }
}

impl Broker {
    /// Makes what a first start needs. What is there already stays.
    pub(super) async fn bootstrap(&self) -> Result<(), AdminError> {
        match self.create_tenant(PUBLIC.0).await {
            Ok(()) | Err(AdminError::TenantExists(_)) => {}
            Err(error) => return Err(error),
        }
        let name = NamespaceName::new(PUBLIC.0, PUBLIC.1)?;
        match self.create_namespace(&name, NamespacePolicies::default(), None).await {
            Ok(()) | Err(AdminError::NamespaceExists(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes a record that must not exist yet, in one transaction with `txn`'s conditions.
    /// Answers false if a condition didn't hold.
    async fn insert<R: Record>(
        &self,
        key: String,
        record: &R,
        txn: Txn,
    ) -> Result<bool, AdminError> {
        let context = &self.inner.context;
        let nonce = Nonce::new(&*context.env.random);
        let invalid = |error| AdminError::Invalid(format!("{key}: {error}"));
        let value = record.encode(nonce).map_err(invalid)?;
        let witness = Witness::new(key.clone(), nonce);
        let txn = txn.when(Compare::Absent(key.clone())).put(key, value);
        let policy = RetryPolicy::default();
        let outcome = commit(&*context.meta, &context.env, policy, txn, &witness).await?;
        Ok(matches!(outcome, TxnOutcome::Applied(_)))
    }

    /// Deletes a record that nobody has changed since it was read.
    async fn remove<R: Record>(&self, stored: &Stored<R>) -> Result<bool, AdminError> {
        let txn = Txn::default().when(stored.unchanged()).delete(stored.key.clone());
        match self.metadata().txn(txn).await {
            Ok(outcome) => Ok(matches!(outcome, TxnOutcome::Applied(_))),
            // Deleting is the one change that leaves no nonce: look whether it is gone.
            Err(error @ StoreError::Unknown(_)) => {
                let gone = self.metadata().get(&stored.key).await?.is_none();
                if gone { Ok(true) } else { Err(error.into()) }
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn is_empty(&self, prefix: &str) -> Result<bool, AdminError> {
        Ok(self.metadata().range(prefix, None, 1).await?.pairs.is_empty())
    }

    /// Tenants, sorted.
    ///
    /// # Errors
    /// Why the metadata can't be read.
    pub async fn list_tenants(&self) -> Result<Vec<String>, AdminError> {
        let tenant = |key| match key {
            Key::Tenant(tenant) => Some(tenant.to_string()),
            _ => None,
        };
        self.list(keys::TENANTS, tenant).await
    }

    async fn list<T>(
        &self,
        prefix: &str,
        pick: impl Fn(Key) -> Option<T>,
    ) -> Result<Vec<T>, AdminError> {
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.metadata().range(prefix, after.as_deref(), MAX_RANGE).await?;
            for pair in &page.pairs {
                let picked = Key::parse(&pair.key).and_then(&pick);
                let unknown = || AdminError::Record(format!("{:?} is not known", pair.key));
                found.push(picked.ok_or_else(unknown)?);
            }
            after = page.pairs.into_iter().next_back().map(|pair| pair.key);
            if !page.more || after.is_none() {
                return Ok(found);
            }
        }
    }

    /// Creates a tenant.
    ///
    /// # Errors
    /// [`AdminError::TenantExists`], or why it can't be created.
    pub async fn create_tenant(&self, tenant: &str) -> Result<(), AdminError> {
        let name = TenantName::new(tenant)?;
        let record = TenantRecord { created_ms: self.env().clock.wall_ms() };
        if self.insert(keys::tenant(&name), &record, Txn::default()).await? {
            return Ok(());
        }
        Err(AdminError::TenantExists(tenant.to_owned()))
    }

    async fn tenant(&self, name: &TenantName) -> Result<Stored<TenantRecord>, AdminError> {
        let found = read::<TenantRecord>(&**self.metadata(), &keys::tenant(name)).await?;
        found.ok_or_else(|| AdminError::TenantNotFound(name.to_string()))
    }

    /// Deletes a tenant that has no namespaces.
    ///
    /// # Errors
    /// [`AdminError::TenantNotFound`] or [`AdminError::TenantNotEmpty`], or why it can't be
    /// deleted.
    pub async fn delete_tenant(&self, tenant: &str) -> Result<(), AdminError> {
        let name = TenantName::new(tenant)?;
        let stored = self.tenant(&name).await?;
        let busy = || AdminError::TenantNotEmpty(tenant.to_owned());
        if !self.is_empty(&keys::namespaces_of(&name)).await? {
            return Err(busy());
        }
        // Creating a namespace rewrites its tenant's record, so none can appear unseen.
        if self.remove(&stored).await? { Ok(()) } else { Err(busy()) }
    }

    /// A tenant's namespaces, sorted.
    ///
    /// # Errors
    /// [`AdminError::TenantNotFound`], or why the metadata can't be read.
    pub async fn list_namespaces(&self, tenant: &str) -> Result<Vec<NamespaceName>, AdminError> {
        let name = TenantName::new(tenant)?;
        self.tenant(&name).await?;
        let namespace = |key| match key {
            Key::Namespace(name) => Some(name),
            _ => None,
        };
        self.list(&keys::namespaces_of(&name), namespace).await
    }

    pub(super) async fn stored_namespace(
        &self,
        name: &NamespaceName,
    ) -> Result<Stored<NamespaceRecord>, AdminError> {
        let found = read::<NamespaceRecord>(&**self.metadata(), &keys::namespace(name)).await?;
        found.ok_or_else(|| AdminError::NamespaceNotFound(name.to_string()))
    }

    /// A namespace.
    ///
    /// # Errors
    /// [`AdminError::NamespaceNotFound`], or why the metadata can't be read.
    pub async fn namespace(&self, name: &NamespaceName) -> Result<NamespaceInfo, AdminError> {
        let record = self.stored_namespace(name).await?.record;
        Ok(NamespaceInfo {
            created_ms: record.created_ms,
            policies: plain(&record.policies),
            bundle_bounds: record.bundle_bounds,
        })
    }

    /// Creates a namespace. `bundles`: the broker's default if `None`.
    ///
    /// # Errors
    /// [`AdminError::TenantNotFound`] or [`AdminError::NamespaceExists`], or why it can't be
    /// created.
    pub async fn create_namespace(
        &self,
        name: &NamespaceName,
        policies: NamespacePolicies,
        bundles: Option<u32>,
    ) -> Result<(), AdminError> {
        let bundles = bundles.unwrap_or(self.config().bundles_per_namespace);
        if !(1..=NamespaceRecord::MAX_BUNDLES as u64).contains(&u64::from(bundles)) {
            let most = NamespaceRecord::MAX_BUNDLES;
            return Err(AdminError::Invalid(format!("bundles must be between 1 and {most}")));
        }
        let record = NamespaceRecord {
            created_ms: self.env().clock.wall_ms(),
            bundle_bounds: NamespaceRecord::even_bounds(bundles),
            policies: geminga_meta::record::NamespacePolicies {
                retention_ms: policies.retention_ms,
                retention_bytes: policies.retention_bytes,
                auto_topic_creation: policies.auto_topic_creation,
                write_quorum: None,
                ack_quorum: None,
            },
        };
        let key = keys::namespace(name);
        for _ in 0..16 {
            let tenant = self.tenant(&name.tenant_name()).await?;
            if self.metadata().get(&key).await?.is_some() {
                return Err(AdminError::NamespaceExists(name.to_string()));
            }
            let nonce = Nonce::new(&*self.env().random);
            let invalid = |error| AdminError::Record(format!("{}: {error}", tenant.key));
            let touched = tenant.record.encode(nonce).map_err(invalid)?;
            let txn = Txn::default().when(tenant.unchanged()).put(tenant.key.clone(), touched);
            if self.insert(key.clone(), &record, txn).await? {
                return Ok(());
            }
        }
        Err(StoreError::Unavailable(format!("tenant {} keeps changing", name.tenant())).into())
    }

    /// Replaces a namespace's policies.
    ///
    /// # Errors
    /// [`AdminError::NamespaceNotFound`], or why they can't be written.
    pub async fn set_namespace_policies(
        &self,
        name: &NamespaceName,
        policies: NamespacePolicies,
    ) -> Result<(), AdminError> {
        self.update_namespace_policies(name, |current| *current = policies).await
    }

    /// Changes a namespace's policies. `change` may be called more than once, each time with the
    /// policies in force.
    ///
    /// # Errors
    /// [`AdminError::NamespaceNotFound`], or why they can't be written.
    pub async fn update_namespace_policies(
        &self,
        name: &NamespaceName,
        mut change: impl FnMut(&mut NamespacePolicies) + Send,
    ) -> Result<(), AdminError> {
        let key = keys::namespace(name);
        let set = |current: Current<'_, NamespaceRecord>| {
            let missing = || AdminError::NamespaceNotFound(name.to_string());
            let mut record = current.stored.ok_or_else(missing)?.record.clone();
            let mut policies = plain(&record.policies);
            change(&mut policies);
            record.policies.retention_ms = policies.retention_ms;
            record.policies.retention_bytes = policies.retention_bytes;
            record.policies.auto_topic_creation = policies.auto_topic_creation;
            Ok(Change::Put(record))
        };
        let (meta, policy) = (&**self.metadata(), RetryPolicy::default());
        update(meta, self.env(), policy, &key, set).await.map_err(update_error)?;
        Ok(())
    }
}
