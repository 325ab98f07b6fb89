//! [`AdminApi`]: the admin REST API as the tools use it. JSON over plain HTTP, one request at a
//! time, bounded in time and size.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that is read; listings come in pages below this.
const MAX_BODY_BYTES: usize = 64 << 20;

/// The API at one address.
#[derive(Debug, Clone)]
pub struct AdminApi {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl AdminApi {
    /// The API at `http://host:port`.
    #[must_use]
    pub fn new(url: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { base: url.trim_end_matches('/').to_owned(), client }
    }

    /// Asks for something. `path` begins with `/` and is encoded already.
    ///
    /// # Errors
    /// What the server said, or that it can't be reached.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.request(Method::GET, path, None).await
    }

    /// Creates or sets something.
    ///
    /// # Errors
    /// As for [`AdminApi::get`].
    pub async fn put(&self, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        self.request(Method::PUT, path, body).await
    }

    /// Does something.
    ///
    /// # Errors
    /// As for [`AdminApi::get`].
    pub async fn post(&self, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        self.request(Method::POST, path, body).await
    }

    /// Deletes something.
    ///
    /// # Errors
    /// As for [`AdminApi::get`].
    pub async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.request(Method::DELETE, path, None).await
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<Value> {
        let answer = tokio::time::timeout(TIMEOUT, self.exchange(method, path, body)).await;
        let (status, body) = answer
            .map_err(|_elapsed| anyhow!("{} gave no answer within {TIMEOUT:?}", self.base))??;
        if status.is_success() {
            if body.is_empty() {
                return Ok(Value::Null);
            }
            return serde_json::from_slice(&body)
                // /brokers/health answers plain text.
                .or_else(|_| String::from_utf8(body.to_vec()).map(Value::String))
                .with_context(|| format!("{} answered what is neither JSON nor text", self.base));
        }
        bail!("{}", refusal(&self.base, status, &body))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let unreachable = || {
            format!(
                "can't reach the admin API at {} (is a broker running there? its admin port is \
                 8080 unless told otherwise; see --admin-url)",
                self.base
            )
        };
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        let mut bytes = Bytes::new();
        if let Some(body) = body {
            request = request.header("content-type", "application/json");
            bytes = body.to_string().into();
        }
        let request = request.body(Full::new(bytes)).with_context(unreachable)?;
        let response = self.client.request(request).await.with_context(unreachable)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
        let body =
            body.map_err(|error| anyhow!("the answer of {} broke off: {error}", self.base))?;
        Ok((status, body.to_bytes()))
    }
}

/// What a refusal says: the `reason` of an admin API, or what else answered.
fn refusal(base: &str, status: StatusCode, body: &[u8]) -> String {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    match json.as_ref().and_then(|json| json.get("reason")).and_then(Value::as_str) {
        Some(reason) => format!("{reason} [{}]", status.as_u16()),
        None => format!("{base} answered {status}; is that a Geminga admin port (default 8080)?"),
    }
}

/// A path segment: everything but unreserved characters is percent-encoded.
#[must_use]
pub fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_can_hold_any_name() {
        assert_eq!(segment("a-b_c.d~1"), "a-b_c.d~1");
        assert_eq!(segment("a/b c%é"), "a%2Fb%20c%25%C3%A9");
    }

    #[test]
    fn a_refusal_gives_the_reason_and_anything_else_a_hint() {
        let said = refusal("http://a:1", StatusCode::NOT_FOUND, br#"{"reason":"no such topic"}"#);
        assert_eq!(said, "no such topic [404]");
        let other = refusal("http://a:1", StatusCode::BAD_GATEWAY, b"<html>");
        assert!(other.contains("http://a:1") && other.contains("admin port"), "{other}");
    }
}
