//! Finds the broker that serves a topic and connects to it.

use std::sync::Arc;

use geminga_proto::topic_name::TopicName;
use geminga_proto::v1::ErrorCode;

use crate::connection::{Connection, Pool};
use crate::error::{BrokerError, ClientError};

/// A connection to the broker that serves `topic`, by the word of the one at `service_url`.
pub(crate) async fn locate(
    pool: &Pool,
    service_url: &str,
    topic: &TopicName,
) -> Result<Arc<Connection>, ClientError> {
    let asked = pool.get(service_url).await?;
    let answer = asked.lookup(&topic.to_string()).await?;
    if answer.partitions > 0 {
        let message = format!("{topic} is partitioned; partitioned topics are not supported");
        return Err(BrokerError { code: ErrorCode::Unsupported, message }.into());
    }
    if answer.service_url.is_empty() || answer.service_url == asked.url() {
        return Ok(asked);
    }
    pool.get(&answer.service_url).await
}
