//! Sends a request that only a topic's owner can answer to the owner: 307, as Pulsar does, with the
//! same path and options.
//!
//! Invariant: a request is sent on once. It then says `authoritative=true`, and whoever gets such a
//! one answers it, or says that it can't.

use axum::extract::FromRequestParts;
use axum::http::Uri;
use axum::http::request::Parts;
use geminga_proto::topic_name::TopicName;

use crate::core::api::Lookup;
use crate::frontend::admin::AdminState;
use crate::frontend::admin::error::ApiError;
use crate::frontend::admin::extract::{SubscriptionPath, TopicPath};

/// The option by which a request says that it was sent here, as Pulsar's do.
const SENT: &str = "authoritative=true";

/// Whether another broker has sent the request here.
pub fn was_sent_here(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|option| option == SENT))
}

/// The answer that sends a request to the broker with this admin URL.
pub fn to(admin_url: &str, uri: &Uri) -> ApiError {
    let (base, path) = (admin_url.trim_end_matches('/'), uri.path());
    ApiError::elsewhere(match uri.query().filter(|query| !query.is_empty()) {
        Some(query) => format!("{base}{path}?{query}&{SENT}"),
        None => format!("{base}{path}?{SENT}"),
    })
}

/// Answers with the owner's place unless this broker serves the topic, or is to.
///
/// # Errors
/// 307, or why the topic can't be looked up.
pub async fn unless_served(
    state: &AdminState,
    topic: &TopicName,
    uri: &Uri,
) -> Result<(), ApiError> {
    if was_sent_here(uri) {
        return Ok(());
    }
    match state.broker.lookup(topic).await? {
        Lookup::Here => Ok(()),
        Lookup::Elsewhere { admin_url, .. } => Err(to(&admin_url, uri)),
    }
}

/// `{tenant}/{namespace}/{topic}` of the path, of a topic that this broker serves.
pub struct ServedTopic(pub TopicName);

impl FromRequestParts<AdminState> for ServedTopic {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AdminState) -> Result<Self, ApiError> {
        let TopicPath(topic) = TopicPath::from_request_parts(parts, state).await?;
        unless_served(state, &topic, &parts.uri).await?;
        Ok(Self(topic))
    }
}

/// `{tenant}/{namespace}/{topic}/subscription/{subscription}` of the path, of a topic that this
/// broker serves.
pub struct ServedSubscription {
    /// The topic.
    pub topic: TopicName,
    /// The subscription's name, checked.
    pub subscription: String,
}

impl FromRequestParts<AdminState> for ServedSubscription {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AdminState) -> Result<Self, ApiError> {
        let path = SubscriptionPath::from_request_parts(parts, state).await?;
        let SubscriptionPath { topic, subscription } = path;
        unless_served(state, &topic, &parts.uri).await?;
        Ok(Self { topic, subscription })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_sent_on_with_its_options_and_once() {
        let uri: Uri = "/admin/v2/persistent/a/b/c%2Fd?force=true".parse().expect("valid");
        assert!(!was_sent_here(&uri));
        let answer = to("http://other:8080/", &uri);
        assert_eq!(answer.status.as_u16(), 307);
        let expected =
            "http://other:8080/admin/v2/persistent/a/b/c%2Fd?force=true&authoritative=true";
        assert_eq!(answer.location.as_deref(), Some(expected));
        let sent: Uri = expected.parse().expect("valid");
        assert!(was_sent_here(&sent));
        let bare: Uri = "/a".parse().expect("valid");
        assert_eq!(
            to("http://o", &bare).location.as_deref(),
            Some("http://o/a?authoritative=true")
        );
    }
}
