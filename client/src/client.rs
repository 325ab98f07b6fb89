//! [`Client`]: where producers and consumers come from. It holds the settings, the connections,
//! and nothing of any topic.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use geminga_proto::env::Env;
use geminga_proto::topic_name::{NamespaceName, TopicName};

use crate::connection::{BrokerInfo, ConnectSettings, Connection, Pool};
use crate::consumer::ConsumerBuilder;
use crate::error::ClientError;
use crate::lookup;
use crate::producer::ProducerBuilder;

/// Where a broker listens if nothing else is said.
pub const DEFAULT_SERVICE_URL: &str = "http://localhost:6660";

/// A cluster's client. Cheap to clone; clones share connections.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use geminga_client::Client;
///
/// let client = Client::builder().service_url("http://localhost:6660").build()?;
/// let producer = client.producer("orders").open().await?;
/// let receipt = producer.send("one espresso").await?;
/// println!("stored as {}", receipt.id);
/// producer.close().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<ClientInner>,
}

pub(crate) struct ClientInner {
    pub(crate) pool: Pool,
    pub(crate) env: Env,
    pub(crate) operation_timeout: Duration,
    service_url: String,
    namespace: NamespaceName,
    /// Ids of producers and consumers: never used twice, so that a late answer to a session
    /// that is gone can't be taken for one to its successor.
    next_id: AtomicU64,
}

impl fmt::Debug for Client {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Client").field("service_url", &self.inner.service_url).finish()
    }
}

impl Drop for ClientInner {
    fn drop(&mut self) {
        self.pool.close();
    }
}

impl ClientInner {
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// A connection to the broker that serves `topic`.
    pub(crate) async fn locate(&self, topic: &TopicName) -> Result<Arc<Connection>, ClientError> {
        lookup::locate(&self.pool, &self.service_url, topic).await
    }
}

impl Client {
    /// Starts to build a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Connects now, instead of with the first producer or consumer, and says to whom.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn connect(&self) -> Result<BrokerInfo, ClientError> {
        let connection = self.inner.pool.get(&self.inner.service_url).await?;
        Ok(connection.info().clone())
    }

    /// The full name of a topic: `persistent://tenant/namespace/topic`, `tenant/namespace/topic`,
    /// or a short name in this client's tenant and namespace.
    ///
    /// # Errors
    /// [`ClientError::Name`] says what is wrong with the name.
    pub fn topic(&self, name: &str) -> Result<TopicName, ClientError> {
        if name.contains('/') {
            return Ok(name.parse()?);
        }
        Ok(TopicName::new(self.inner.namespace.clone(), name)?)
    }

    /// Starts to build a producer on a topic.
    pub fn producer(&self, topic: &str) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), topic)
    }

    /// Starts to build a consumer of a topic's subscription.
    pub fn consumer(&self, topic: &str, subscription: &str) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), topic, subscription)
    }

    /// Ends the connections. Producers and consumers that are still open fail with
    /// [`ClientError::Closed`]; close them first to be sure of their messages.
    pub fn close(&self) {
        self.inner.pool.close();
    }
}

/// A client's settings.
#[derive(Debug, Clone)]
#[must_use]
pub struct ClientBuilder {
    service_url: String,
    tenant: String,
    namespace: String,
    expected_cluster_id: Option<String>,
    client_name: String,
    connect_timeout: Duration,
    operation_timeout: Duration,
    env: Env,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            service_url: DEFAULT_SERVICE_URL.to_owned(),
            tenant: "public".to_owned(),
            namespace: "default".to_owned(),
            expected_cluster_id: None,
            client_name: concat!("geminga-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(5),
            operation_timeout: Duration::from_secs(30),
            env: Env::system(),
        }
    }
}

impl ClientBuilder {
    /// Address of any broker of the cluster: `http://host:port`. Default: localhost, port 6660.
    pub fn service_url(mut self, url: impl Into<String>) -> Self {
        self.service_url = url.into();
        self
    }

    /// Tenant of topics that are named without one. Default: `public`.
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = tenant.into();
        self
    }

    /// Namespace of topics that are named without one. Default: `default`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Refuses brokers of any other cluster.
    pub fn expected_cluster_id(mut self, cluster_id: impl Into<String>) -> Self {
        self.expected_cluster_id = Some(cluster_id.into());
        self
    }

    /// What brokers' logs call this client.
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.client_name = name.into();
        self
    }

    /// Limit of one attempt to connect. Default: 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long opening a producer or consumer is tried, and how long one request may take.
    /// Default: 30 s.
    pub fn operation_timeout(mut self, timeout: Duration) -> Self {
        self.operation_timeout = timeout;
        self
    }

    /// Clocks and randomness; for tests and simulations.
    pub fn env(mut self, env: Env) -> Self {
        self.env = env;
        self
    }

    /// Checks the settings. Connects to nothing yet.
    ///
    /// # Errors
    /// [`ClientError::Config`] or [`ClientError::Name`] say what is wrong.
    pub fn build(self) -> Result<Client, ClientError> {
        let refuse = |setting, why: &str| Err(ClientError::Config { setting, why: why.to_owned() });
        if self.service_url.starts_with("https://") {
            return refuse("service_url", "TLS is not supported; use http://host:port");
        }
        let authority = self.service_url.strip_prefix("http://").unwrap_or_default();
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if authority.is_empty() || authority.contains('/') {
            let why = format!("{:?} is not http://host:port", self.service_url);
            return Err(ClientError::Config { setting: "service_url", why });
        }
        if self.connect_timeout.is_zero() {
            return refuse("connect_timeout", "must be more than 0");
        }
        if self.operation_timeout.is_zero() {
            return refuse("operation_timeout", "must be more than 0");
        }
        if self.client_name.len() > 256 {
            return refuse("client_name", "must have at most 256 bytes");
        }
        let namespace = NamespaceName::new(&self.tenant, &self.namespace)?;
        let settings = ConnectSettings {
            connect_timeout: self.connect_timeout,
            operation_timeout: self.operation_timeout,
            expected_cluster_id: self.expected_cluster_id.filter(|id| !id.is_empty()),
            client_name: self.client_name,
        };
        let inner = ClientInner {
            pool: Pool::new(settings),
            env: self.env,
            operation_timeout: self.operation_timeout,
            service_url: format!("http://{authority}"),
            namespace,
            next_id: AtomicU64::new(1),
        };
        Ok(Client { inner: Arc::new(inner) })
    }
}
