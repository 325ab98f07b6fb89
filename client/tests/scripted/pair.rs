//! Two scripted brokers of one cluster, each behind a proxy. At first both take the second one,
//! `b`, for the owner of every topic.

use geminga_client::{Client, ErrorCode};

use crate::broker::Broker;
use crate::proxy::Proxy;

pub struct Pair {
    pub a: Broker,
    pub b: Broker,
    pub at_a: Proxy,
    pub at_b: Proxy,
}

impl Pair {
    pub async fn start() -> Self {
        let b = Broker::default();
        let a = b.sibling("a");
        let at_a = Proxy::to(&a.serve().await).await;
        let at_b = Proxy::to(&b.serve().await).await;
        a.sees_owner(&b, &at_b.url);
        Self { a, b, at_a, at_b }
    }

    pub fn urls(&self) -> String {
        format!("{},{}", self.at_a.url, self.at_b.url)
    }

    /// Knows both brokers, and begins with any.
    pub fn client(&self) -> Client {
        crate::client(&self.urls())
    }

    /// Both know that `a` is the owner from now on; `b` says so to nobody by itself.
    pub fn a_takes_over(&self) {
        self.b.sees_owner(&self.a, &self.at_a.url);
        self.a.takes_over();
    }

    /// As a broker that is stopped in order does.
    pub fn b_hands_over(&self) {
        self.a_takes_over();
        self.b.close_all(ErrorCode::NotOwner);
    }

    pub fn assert_no_violations(&self) {
        self.b.assert_no_violations();
    }
}
