//! What a request says, checked: names out of the path, options out of the query, bodies.
//!
//! Everything that fails here is answered as `{"reason": "…"}`: malformed encoding, queries and
//! JSON with 400, malformed names with 412, as Pulsar does.

use axum::extract::{FromRequestParts, Query, RawPathParams};
use axum::http::request::Parts;
use bytes::Bytes;
use geminga_proto::topic_name::{NamespaceName, TenantName, TopicName, check_subscription};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::frontend::admin::error::ApiError;

/// The path's parameters, percent-decoded once.
pub struct PathParams(Vec<(String, String)>);

impl PathParams {
    /// The parameter of this name.
    ///
    /// # Errors
    /// 400 if the path hasn't got it.
    pub fn get(&self, name: &str) -> Result<&str, ApiError> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found
            .map(|(_, value)| value.as_str())
            .ok_or_else(|| ApiError::malformed(format!("the path has no {name}")))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for PathParams {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_not_utf8| ApiError::malformed("the path is not UTF-8 when decoded"))?;
        Ok(Self(params.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()))
    }
}

/// `{tenant}` of the path.
pub struct TenantPath(pub TenantName);

impl<S: Send + Sync> FromRequestParts<S> for TenantPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = PathParams::from_request_parts(parts, state).await?;
        Ok(Self(TenantName::new(params.get("tenant")?)?))
    }
}

/// `{tenant}/{namespace}` of the path.
pub struct NamespacePath(pub NamespaceName);

impl<S: Send + Sync> FromRequestParts<S> for NamespacePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = PathParams::from_request_parts(parts, state).await?;
        Ok(Self(NamespaceName::new(params.get("tenant")?, params.get("namespace")?)?))
    }
}

/// `{tenant}/{namespace}/{topic}` of the path.
pub struct TopicPath(pub TopicName);

impl<S: Send + Sync> FromRequestParts<S> for TopicPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = PathParams::from_request_parts(parts, state).await?;
        let namespace = NamespaceName::new(params.get("tenant")?, params.get("namespace")?)?;
        Ok(Self(TopicName::new(namespace, params.get("topic")?)?))
    }
}

/// `{tenant}/{namespace}/{topic}/subscription/{subscription}` of the path.
pub struct SubscriptionPath {
    /// The topic.
    pub topic: TopicName,
    /// The subscription's name, checked.
    pub subscription: String,
}

impl<S: Send + Sync> FromRequestParts<S> for SubscriptionPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let TopicPath(topic) = TopicPath::from_request_parts(parts, state).await?;
        let params = PathParams::from_request_parts(parts, state).await?;
        let subscription = params.get("subscription")?.to_owned();
        check_subscription(&subscription)?;
        Ok(Self { topic, subscription })
    }
}

/// The query's options. Options that `T` doesn't know are not an error: Pulsar's tools send some
/// that have no meaning here, like `authoritative`.
pub struct Options<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Options<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query
            .map(|Query(options)| Self(options))
            .map_err(|error| ApiError::malformed(format!("query: {}", error.body_text())))
    }
}

/// Reads a JSON body; `None` if it is empty or `null`. The content type is not looked at, since
/// scripts often don't set it.
///
/// # Errors
/// 400 says what is wrong with it.
pub fn json_body<T: DeserializeOwned>(body: &Bytes) -> Result<Option<T>, ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    serde_json::from_slice(body).map_err(|error| ApiError::malformed(format!("body: {error}")))
}

/// True for what a policy's absence looks like in a body that a tool has written out with all its
/// defaults: null, false, 0, -1, empty, or made of nothing else.
pub fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => matches!(number.as_f64(), Some(n) if n == 0.0 || n == -1.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.iter().all(is_unset),
        Value::Object(fields) => fields.values().all(is_unset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_body_is_absent_null_json_or_malformed() {
        let read = |text: &'static str| json_body::<Vec<u8>>(&Bytes::from_static(text.as_bytes()));
        assert_eq!(read(""), Ok(None));
        assert_eq!(read(" \r\n"), Ok(None));
        assert_eq!(read("null"), Ok(None));
        assert_eq!(read("[1,2]"), Ok(Some(vec![1, 2])));
        for text in ["{", "[1,", "\u{0}", "[300]", "{}", "[1] x"] {
            let error = read(text).expect_err("malformed");
            assert_eq!(error.status.as_u16(), 400, "{text:?}");
            assert!(error.reason.starts_with("body: "), "{}", error.reason);
        }
    }

    #[test]
    fn a_body_nested_too_deeply_is_an_error_and_not_a_stack_overflow() {
        let deep = Bytes::from("[".repeat(60_000));
        assert!(json_body::<Value>(&deep).is_err());
    }

    #[test]
    fn only_what_says_nothing_is_unset() {
        for value in [json!(null), json!(0), json!(-1), json!([]), json!({"a": {"b": false}})] {
            assert!(is_unset(&value), "{value}");
        }
        for value in [json!(true), json!(1), json!("x"), json!([2]), json!({"a": {"b": [1]}})] {
            assert!(!is_unset(&value), "{value}");
        }
    }
}
