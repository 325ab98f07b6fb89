//! [`Keeper`]: takes the bookie's name in the metadata and keeps its record up to date.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

use super::*;

/// The lease that the record hangs on, and what was told with it.
#[derive(Debug)]
struct Held {
    lease: LeaseId,
    told: BookieRecord,
    told_at: Monotonic,
}

/// How one turn ended.
#[derive(Debug)]
enum Turn {
    /// The record is there and true.
    Registered,
    /// The store doesn't answer.
    Away(String),
    /// Somebody else has the name.
    Taken(String),
    /// This process must not serve any more.
    Over(RegistrationError),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Keeper {
    config: RegistrationConfig,
    bookie: Bookie,
    store: Arc<dyn MetadataStore>,
    env: Env,
    session: u64,
    held: Option<Held>,
    /// Pause between two notes of the metadata's revision.
    pub(super) noted_pause: Duration,
    /// The task that notes it.
    noting: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn new(
        config: RegistrationConfig,
        bookie: Bookie,
        store: Arc<dyn MetadataStore>,
        env: Env,
    ) -> Self {
        let session = env.random.nonzero_u64();
        let noted_pause = NOTED_PAUSE;
        Self { config, bookie, store, env, session, held: None, noted_pause, noting: None }
    }

    /// How often a sign of life is sent.
    fn pace(&self) -> Duration {
        (self.config.lease_ttl / 4).max(Duration::from_millis(10))
    }

    fn record(&self) -> BookieRecord {
        let info = self.bookie.info();
        let ttl_ms = self.config.lease_ttl.as_millis();
        let poisoned = self.bookie.poisoned().is_some();
        BookieRecord {
            bookie_id: self.bookie.identity().bookie.clone(),
            address: self.config.address.clone(),
            zone: self.config.zone.clone(),
            writable: info.writable && !poisoned,
            total_bytes: info.total_bytes,
            free_bytes: info.free_bytes.min(info.total_bytes),
            poisoned,
            session: self.session,
            lease_ttl_ms: u64::try_from(ttl_ms).unwrap_or(u64::MAX),
            release: self.config.release.clone(),
            max_entry_bytes: u64::from(self.bookie.config().max_entry_bytes),
            highest_ledger: self.bookie.highest_ledger(),
        }
    }

    /// Waits for the metadata store; refuses one that isn't ours, or went back.
    pub(super) async fn check_metadata(&self) -> Result<(), RegistrationError> {
        let mut silent = false;
        loop {
            match gc::check(&self.bookie, &self.store).await {
                Ok(()) => return Ok(()),
                Err(CollectError::Store(error)) if is_passing(&error) => {
                    self.wait_for_store(&error, &mut silent).await;
                }
                Err(error) => return Err(RegistrationError::Metadata(error)),
            }
        }
    }

    async fn wait_for_store(&self, error: &StoreError, silent: &mut bool) {
        if !std::mem::replace(silent, true) {
            tracing::info!(%error, "waiting for the metadata store to register this bookie");
        }
        tokio::time::sleep(self.pace()).await;
    }

    /// Registers for the first time.
    pub(super) async fn take_name(&mut self) -> Result<(), RegistrationError> {
        let mut silent = false;
        // Until when somebody else's lease may be alive.
        let mut until: Option<Monotonic> = None;
        loop {
            let error = match self.register().await {
                Ok(None) => return Ok(()),
                Ok(Some(found)) => match self.contest(&found, &mut until).await {
                    Ok(()) => continue,
                    Err(Contest::Lost(error)) => return Err(error),
                    Err(Contest::Store(error)) => error,
                },
                Err(Failed::Record(error)) => return Err(error.into()),
                Err(Failed::TakenAway(bookie)) => {
                    return Err(RegistrationError::TakenAway { bookie });
                }
                Err(Failed::Metadata(error)) => return Err(RegistrationError::Metadata(error)),
                Err(Failed::Store(error)) => error,
            };
            if !is_passing(&error) {
                return Err(RegistrationError::Store(error));
            }
            self.wait_for_store(&error, &mut silent).await;
        }
    }

    /// Somebody else's record is there: ends its lease if it is of an earlier run, else waits a
    /// moment, or gives up.
    async fn contest(&self, found: &Found, until: &mut Option<Monotonic>) -> Result<(), Contest> {
        let other = &found.stored.record;
        if rival(&self.record(), other) == Rival::Former
            && let Some(lease) = found.lease
        {
            tracing::info!(address = other.address, "replacing the record of an earlier run");
            return match self.store.revoke_lease(lease).await {
                Ok(()) | Err(StoreError::LeaseLost) => Ok(()),
                Err(error) => Err(Contest::Store(error)),
            };
        }
        let now = self.env.clock.monotonic();
        let lease = match other.lease_ttl_ms {
            0 => self.config.lease_ttl,
            told => Duration::from_millis(told),
        };
        let until = until.get_or_insert_with(|| {
            tracing::info!(
                address = other.address,
                "this bookie's name is taken; waiting for the other one's lease to end"
            );
            now.saturating_add(lease.saturating_mul(2)).saturating_add(LEASE_SLACK)
        });
        if now >= *until {
            let bookie = other.bookie_id.clone();
            let address = other.address.clone();
            return Err(Contest::Lost(RegistrationError::AlreadyRunning { bookie, address }));
        }
        tokio::time::sleep(self.pace()).await;
        Ok(())
    }

    /// Writes the record under a lease of its own, unless somebody else's is there; answers that.
    async fn register(&mut self) -> Result<Option<Found>, Failed> {
        let lease = match &self.held {
            Some(held) => held.lease,
            None => self.store.grant_lease(self.config.lease_ttl).await?,
        };
        let registered = self.write(lease).await;
        if self.held.is_none() {
            // Its lease would only wait for its end.
            self.drop_lease(lease).await;
        }
        registered
    }

    async fn drop_lease(&self, lease: LeaseId) {
        if let Err(error) = self.store.revoke_lease(lease).await {
            tracing::debug!(%error, "a lease is left to its end");
        }
    }

    async fn write(&mut self, lease: LeaseId) -> Result<Option<Found>, Failed> {
        let record = self.record();
        let key = keys::bookie(&record.bookie_id);
        // Whose name it is by now is nothing to wait for if this disk is known no more.
        let cookie = self.cookie(&record.bookie_id).await?;
        let found = self.find(&key).await?;
        let compare = match &found {
            None => Compare::Absent(key.clone()),
            Some(other) => match rival(&record, &other.stored.record) {
                Rival::Ourselves => other.stored.unchanged(),
                // It hangs on nothing that could end.
                Rival::Former if other.lease.is_none() => other.stored.unchanged(),
                Rival::Former | Rival::Other => return Ok(found),
            },
        };
        let nonce = Nonce::new(self.env.random.as_ref());
        let value = record.encode(nonce)?;
        let unchanged = Txn::default().when(compare).when(cookie.unchanged());
        let txn = unchanged.put_leased(&key, value, lease);
        let policy = RetryPolicy { attempts: 3, ..RetryPolicy::default() };
        let witness = Witness::new(&key, nonce);
        match commit(self.store.as_ref(), &self.env, policy, txn, &witness).await? {
            TxnOutcome::Applied(_) => {
                let told_at = self.env.clock.monotonic();
                self.held = Some(Held { lease, told: record, told_at });
                Ok(None)
            }
            TxnOutcome::Conflict(_) => Err(contended().into()),
        }
    }

    /// This disk's cookie: while it is there, nobody has forgotten the bookie. One that isn't there
    /// says so only if the rest of the metadata is the cluster's, and no older than it was.
    async fn cookie(&self, bookie: &BookieId) -> Result<Stored<CookieRecord>, Failed> {
        let pair = self.store.get(&keys::cookie(bookie)).await?;
        let cookie = pair.map(Stored::<CookieRecord>::from_pair).transpose()?;
        let instance = self.bookie.identity().instance;
        if let Some(ours) = cookie.filter(|cookie| cookie.record.instance == instance) {
            return Ok(ours);
        }
        // Asked after it was found missing: who takes all metadata away takes both.
        match gc::present_revision(&self.bookie, &self.store).await {
            Ok(_) => Err(contended().into()),
            Err(CollectError::NoCookie) => Err(Failed::TakenAway(bookie.clone())),
            Err(CollectError::Store(error)) => Err(error.into()),
            Err(error) => Err(Failed::Metadata(error)),
        }
    }

    async fn find(&self, key: &str) -> Result<Option<Found>, Failed> {
        let Some(pair) = self.store.get(key).await? else { return Ok(None) };
        let lease = pair.lease;
        Ok(Some(Found { stored: Stored::from_pair(pair)?, lease }))
    }

    /// Keeps the record up until it is told to stop; then takes it away. Should that panic, it goes
    /// on: nobody would find a bookie that serves and isn't registered. What is held is set as a
    /// whole, so that nothing is left half changed.
    ///
    /// Answers why this process must not serve any more, if it ends for that.
    pub(super) async fn run(mut self, stopped: watch::Receiver<bool>) -> Option<RegistrationError> {
        let noter = Noter {
            bookie: self.bookie.clone(),
            store: Arc::clone(&self.store),
            pause: self.noted_pause,
            patience: self.patience() / 2,
        };
        self.noting = Some(tokio::spawn(noter.run(stopped.clone())));
        loop {
            match AssertUnwindSafe(self.keep_up(stopped.clone())).catch_unwind().await {
                Ok(over) => return over,
                Err(_) => {
                    tracing::error!("keeping up this bookie's registration panicked; it goes on");
                    tokio::time::sleep(self.pace()).await;
                }
            }
        }
    }

    async fn keep_up(&mut self, mut stopped: watch::Receiver<bool>) -> Option<RegistrationError> {
        let mut last = Turn::Registered;
        loop {
            // A sender that is gone means that nobody waits for the record to go.
            let told = async { stopped.wait_for(|stopped| *stopped).await.is_ok() };
            tokio::select! {
                biased;
                told = told => {
                    if told {
                        self.withdraw().await;
                    }
                    return None;
                }
                () = tokio::time::sleep(self.pace()) => {}
            }
            match self.turn_until(&mut stopped).await {
                Some(Turn::Over(error)) => {
                    if let Some(held) = self.held.take() {
                        self.drop_lease(held.lease).await;
                    }
                    return Some(error);
                }
                Some(turn) => {
                    tell(&last, &turn);
                    last = turn;
                }
                None => {}
            }
        }
    }

    /// How long a sign of life may take. The store itself gives it up in less than a lease, after
    /// it has asked each of its endpoints: that must not be cut short, or the last of them would
    /// never be asked. What hangs for longer had better be asked anew.
    fn patience(&self) -> Duration {
        self.config.lease_ttl.max(Duration::from_millis(500))
    }

    /// A turn. `None`: the end came meanwhile, and the turn didn't end soon.
    async fn turn_until(&mut self, stopped: &mut watch::Receiver<bool>) -> Option<Turn> {
        let soon = self.patience() / 4;
        let turn = self.turn();
        tokio::pin!(turn);
        let told = async { stopped.wait_for(|stopped| *stopped).await.is_ok() };
        tokio::select! {
            biased;
            turn = &mut turn => return Some(turn),
            _ = told => {}
        }
        tokio::time::timeout(soon, turn).await.ok()
    }

    /// A sign of life, and what has changed; or a new registration.
    async fn turn(&mut self) -> Turn {
        match self.keep().await {
            Ok(None) => Turn::Registered,
            Ok(Some(found)) => Turn::Taken(found.stored.record.address),
            Err(Failed::TakenAway(bookie)) => Turn::Over(RegistrationError::TakenAway { bookie }),
            Err(error) => Turn::Away(error.to_string()),
        }
    }

    async fn keep(&mut self) -> Result<Option<Found>, Failed> {
        let patience = self.patience();
        if let Some(held) = &self.held {
            match in_time(patience, self.store.keep_alive(held.lease)).await {
                Ok(()) => {
                    let since = self.env.clock.monotonic().saturating_sub(held.told_at);
                    if !differs(&held.told, &self.record(), since) {
                        return Ok(None);
                    }
                    // The lease must not end over it: the next sign of life comes after it.
                    return in_time(patience / 2, self.register()).await;
                }
                Err(StoreError::LeaseLost) => {
                    tracing::info!("the lease of this bookie's record was lost; it is taken again");
                    self.held = None;
                }
                Err(error) => return Err(error.into()),
            }
        }
        // There is no lease that could end meanwhile.
        in_time(patience, self.register()).await
    }

    /// With the rest of a turn, this takes no longer than [`Self::patience`].
    async fn withdraw(&mut self) {
        let limit = self.patience() / 2;
        let (held, noting) = (self.held.take(), self.noting.take());
        let noted = async {
            let Some(noting) = noting else { return };
            match tokio::time::timeout(limit, noting).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "noting the revision has failed"),
                Err(_) => tracing::info!("the metadata's revision isn't noted in time"),
            }
        };
        let revoked = async {
            let Some(held) = held else { return };
            match in_time(limit, self.store.revoke_lease(held.lease)).await {
                Ok(()) | Err(StoreError::LeaseLost) => {}
                Err(error) => {
                    tracing::info!(%error, "this bookie's record is left to the end of its lease");
                }
            }
        };
        tokio::join!(noted, revoked);
    }
}

async fn in_time<T, E: From<StoreError>>(
    limit: Duration,
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
        let why = format!("no answer within {} ms", limit.as_millis());
        Err(StoreError::Unavailable(why).into())
    })
}

/// A record of our name, with the lease that it hangs on.
#[derive(Debug)]
struct Found {
    stored: Stored<BookieRecord>,
    lease: Option<LeaseId>,
}

/// Why the record was not written.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("bookie {0} was taken away for good")]
    TakenAway(BookieId),
    #[error(transparent)]
    Metadata(CollectError),
}

/// How waiting for another's lease ended badly.
enum Contest {
    Lost(RegistrationError),
    Store(StoreError),
}

fn contended() -> StoreError {
    StoreError::Unavailable("the bookie's record was changed meanwhile".to_owned())
}

/// Whether trying again may help.
fn is_passing(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Unavailable(_)
            | StoreError::Unknown(_)
            | StoreError::LeaseLost
            | StoreError::Full(_)
    )
}

/// Says what has changed, once.
fn tell(last: &Turn, turn: &Turn) {
    match (last, turn) {
        (Turn::Registered, Turn::Away(error)) => {
            // A store that is out of reach says so itself, louder.
            tracing::info!(error, "this bookie's registration can't be kept up; serving goes on");
        }
        (Turn::Registered | Turn::Away(_), Turn::Taken(address)) => tracing::error!(
            address,
            "another process has registered under this bookie's name; end one of the two"
        ),
        (Turn::Away(_) | Turn::Taken(_), Turn::Registered) => {
            tracing::info!("this bookie is registered again");
        }
        // Whoever runs the bookie says so.
        (_, Turn::Over(_)) | (Turn::Over(_), _) => {}
        (Turn::Registered, Turn::Registered)
        | (Turn::Away(_) | Turn::Taken(_), Turn::Away(_))
        | (Turn::Taken(_), Turn::Taken(_)) => {}
    }
}
