//! What one scripted broker is beside the others of its cluster: its name, and its own view of who
//! serves the topics, which a test sets, and which may be wrong.

use std::sync::Arc;
use std::time::Instant;

use geminga_proto::v1::{ErrorCode, HashRange};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Broker, CLUSTER};

/// One broker's own state.
#[derive(Debug)]
pub struct Node {
    pub id: String,
    pub cluster_id: String,
    /// Name and address of the broker that it takes for the owner; `None`: itself.
    pub owner: Option<(String, String)>,
    /// For which topics its answers are.
    pub bundle: Option<HashRange>,
    pub handshakes: u32,
    /// What clients expected at each handshake.
    pub expected_clusters: Vec<String>,
    pub lookups: u32,
    /// When producers and consumers were opened here, refused ones too.
    pub opened_at: Vec<Instant>,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            id: "b".to_owned(),
            cluster_id: CLUSTER.to_owned(),
            owner: None,
            bundle: None,
            handshakes: 0,
            expected_clusters: Vec::new(),
            lookups: 0,
            opened_at: Vec::new(),
        }
    }
}

impl Default for Broker {
    fn default() -> Self {
        let orders = Arc::new(watch::Sender::new(None));
        Self { state: Arc::default(), node: Arc::default(), orders }
    }
}

impl Broker {
    /// Another broker of the same cluster: it has the same topic, and a view of its own.
    pub fn sibling(&self, id: &str) -> Self {
        let node = Node { id: id.to_owned(), ..Node::default() };
        let state = Arc::clone(&self.state);
        Self { state, node: Arc::new(Mutex::new(node)), ..Self::default() }
    }

    /// From now on it takes somebody else for the owner.
    pub fn sees_owner(&self, other: &Self, url: &str) {
        self.node.lock().owner = Some((other.node.lock().id.clone(), url.to_owned()));
    }

    /// From now on it takes itself for the owner.
    pub fn takes_over(&self) {
        self.node.lock().owner = None;
    }

    /// Closes everything that is open here, with this code.
    pub fn close_all(&self, code: ErrorCode) {
        self.orders.send_replace(Some(code));
    }

    /// The code with which everything is refused that only the owner may do.
    pub(super) fn refusal(&self, code: ErrorCode) -> Option<ErrorCode> {
        self.node.lock().owner.is_some().then_some(code)
    }

    pub fn opened_here(&self) -> usize {
        self.node.lock().opened_at.len()
    }
}
