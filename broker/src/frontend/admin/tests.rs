//! The whole router, without sockets, over a real broker with in-memory metadata and bookies.

mod cluster;
mod hostile;
mod namespaces;
mod own;
mod repair;
mod several;
mod topics;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use geminga_proto::id::BrokerId;
use serde_json::Value;
use tower::ServiceExt;

use super::*;
use crate::core::api::{OpenProducer, Receipt, Subscribe};
use crate::core::broker::{Consumer, Producer};
use crate::core::config::BrokerConfig;
use crate::testing::{Cluster, Ear, entry, open, shared};

/// Bodies of answers are smaller than this in tests.
const MAX_BODY: usize = 1 << 20;
/// Where the tests' topics are.
const TOPICS: &str = "/admin/v2/persistent/public/default";

/// A broker behind its admin API.
struct Api {
    broker: Broker,
    router: Router,
    readiness: Readiness,
}

/// An answer.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The status of an error whose body is as every error's is.
    fn refusal(&self) -> u16 {
        let json = self.json();
        let reason = json["reason"].as_str().unwrap_or_else(|| panic!("no reason: {json}"));
        assert!(!reason.is_empty() && json.as_object().is_some_and(|fields| fields.len() == 1));
        assert_eq!(self.headers["content-type"], "application/json");
        self.status.as_u16()
    }
}

impl Api {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut BrokerConfig)) -> Self {
        let mut config = BrokerConfig {
            broker_id: BrokerId::new("broker-1").expect("valid"),
            service_url: "http://localhost:6660".to_owned(),
            admin_url: "http://localhost:8080".to_owned(),
            ..Cluster::config()
        };
        change(&mut config);
        Self::over(&Cluster::new(), config).await
    }

    /// One of several brokers.
    async fn over(cluster: &Cluster, config: BrokerConfig) -> Self {
        let broker = cluster.broker(config).await;
        let identity = ClusterIdentity {
            name: "standalone".to_owned(),
            id: ClusterId::new("c0ffee").expect("valid"),
            release: "1.2.3".to_owned(),
            protocol: 1..=2,
        };
        let readiness = Readiness::default();
        let state =
            AdminState::new(broker.clone(), identity, readiness.clone(), Registry::default());
        Self { broker, router: router(state, &AdminConfig::default()), readiness }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.expect("never fails");
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, MAX_BODY).await.expect("read");
        let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
        Answer { status: parts.status, headers: parts.headers, text }
    }

    /// Method and path, then the body: an empty one is none.
    async fn ask(&self, line: &str, body: &str) -> Answer {
        let (method, path) = line.split_once(' ').expect("method and path");
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", "Bearer whatever")
            .body(Body::from(body.to_owned()))
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        self.send(request).await
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.ask(&format!("GET {path}"), "").await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
        answer.json()
    }

    /// Asks for something that answers 204 without a body.
    async fn done(&self, line: &str, body: &str) {
        let answer = self.ask(line, body).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{line}: {}", answer.text);
        assert_eq!(answer.text, "", "{line}");
    }

    /// Asks for something that is refused.
    async fn refused(&self, line: &str, body: &str, status: u16) -> String {
        let answer = self.ask(line, body).await;
        assert_eq!(answer.refusal(), status, "{line}: {}", answer.text);
        answer.json()["reason"].as_str().expect("checked").to_owned()
    }

    /// A producer on a topic of `public/default`.
    async fn producer(&self, topic: &str) -> TestProducer {
        let properties = vec![("host".to_owned(), "a".to_owned())];
        let open = OpenProducer { name: "p".to_owned(), properties, ..open(topic) };
        let ear = Arc::new(Ear::default());
        let sink = Arc::clone(&ear) as _;
        let (producer, _) = self.broker.open_producer(open, sink).await.expect("opens");
        TestProducer { producer, ear, broker: self.broker.clone(), sent: 0 }
    }

    async fn consumer(&self, topic: &str, subscription: &str) -> Consumer {
        let subscribe = Subscribe { consumer_name: "c".to_owned(), ..shared(topic, subscription) };
        let sink = Arc::new(Ear::default());
        self.broker.subscribe(subscribe, sink).await.expect("attaches")
    }
}

struct TestProducer {
    producer: Producer,
    ear: Arc<Ear>,
    broker: Broker,
    sent: usize,
}

impl TestProducer {
    /// Publishes one message and waits until it is stored.
    async fn publish(&mut self, payload: &str) -> Receipt {
        let entry = entry(payload);
        let permit = self.broker.budget().acquire(entry.len() as u64).await;
        self.producer.publish(self.sent as u64, entry, permit);
        self.sent += 1;
        self.ear.until("a receipt", |heard| heard.receipts.len() == self.sent).await;
        self.ear.look(|heard| heard.receipts[self.sent - 1])
    }
}
