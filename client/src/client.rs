//! [`Client`]: where producers and consumers come from. It holds the settings, the connections,
//! and nothing of any topic.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use geminga_proto::env::Env;
use geminga_proto::topic_name::{NamespaceName, TopicName};

use crate::connection::{BrokerInfo, ConnectSettings};
use crate::consumer::ConsumerBuilder;
use crate::error::ClientError;
use crate::lookup::Directory;
use crate::pool::Pool;
use crate::producer::ProducerBuilder;
use crate::service_urls::ServiceUrls;

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
    pub(crate) directory: Directory,
    pub(crate) env: Env,
    pub(crate) operation_timeout: Duration,
    /// Producers and consumers that are looking for a broker now. Each counts itself.
    pub(crate) searching: AtomicUsize,
    namespace: NamespaceName,
    /// Ids of producers and consumers: never used twice, so that a late answer to a session
    /// that is gone can't be taken for one to its successor.
    next_id: AtomicU64,
}

impl fmt::Debug for Client {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Client").field("service_urls", &self.inner.directory.urls()).finish()
    }
}

impl Drop for ClientInner {
    fn drop(&mut self) {
        self.directory.close();
    }
}

impl ClientInner {
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

impl Client {
    /// Starts to build a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Connects now, instead of with the first producer or consumer, and says to whom. Each
    /// service URL is tried once.
    ///
    /// # Errors
    /// Why there is no connection; of several service URLs each with its reason.
    pub async fn connect(&self) -> Result<BrokerInfo, ClientError> {
        let connection = self.inner.directory.any().await?;
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
        self.inner.directory.close();
    }
}

/// A client's settings.
#[derive(Debug, Clone)]
#[must_use]
pub struct ClientBuilder {
    service_urls: Vec<String>,
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
            service_urls: vec![DEFAULT_SERVICE_URL.to_owned()],
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
    /// Address of any broker of the cluster: `http://host:port`; or of several, with commas, the
    /// scheme being needed for the first only. Default: localhost, port 6660.
    ///
    /// One that works is enough. With several the client gets along without any one of them: it
    /// begins with a random one, keeps to the one that answered last, and asks the next when one
    /// fails or says nothing for a quarter of a second.
    pub fn service_url(mut self, url: impl Into<String>) -> Self {
        self.service_urls = vec![url.into()];
        self
    }

    /// As [`ClientBuilder::service_url`] with several addresses.
    pub fn service_urls<U: Into<String>>(mut self, urls: impl IntoIterator<Item = U>) -> Self {
        self.service_urls = urls.into_iter().map(Into::into).collect();
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

    /// Refuses brokers of any other cluster. Without it the first connection decides: brokers of
    /// another cluster than that one's are refused from then on.
    pub fn expected_cluster_id(mut self, cluster_id: impl Into<String>) -> Self {
        self.expected_cluster_id = Some(cluster_id.into());
        self
    }

    /// What brokers' logs call this client.
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.client_name = name.into();
        self
    }

    /// Limit of one attempt to connect, and of the handshake after it. Default: 5 s.
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
        let urls = ServiceUrls::new(&self.service_urls, &*self.env.random)?;
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
        let pool = Pool::new(settings, self.env.clone());
        let inner = ClientInner {
            directory: Directory::new(pool, urls, self.env.clone()),
            env: self.env,
            operation_timeout: self.operation_timeout,
            searching: AtomicUsize::new(0),
            namespace,
            next_id: AtomicU64::new(1),
        };
        Ok(Client { inner: Arc::new(inner) })
    }
}
