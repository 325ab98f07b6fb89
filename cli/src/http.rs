//! [`AdminApi`]: the admin REST API as the tools use it. JSON over plain HTTP, one request at a
//! time, bounded in time and size.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::LOCATION;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::config::urls;
use crate::output::with_causes;

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for an answer to a question if there is somebody else to ask.
const PATIENCE: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that is read; listings come in pages below this.
const MAX_BODY_BYTES: usize = 64 << 20;
/// Most redirects that one request follows: to the owner, who may just have changed, or from one
/// owner to the next.
const MAX_REDIRECTS: usize = 64;

/// The API at one or more addresses, of which any will do: a broker that isn't the right one for a
/// request says who is.
#[derive(Debug, Clone)]
pub struct AdminApi {
    /// Never empty.
    bases: Vec<String>,
    /// The one that answered last.
    last: Arc<AtomicUsize>,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// Why one address gave no answer, and whether another may be asked instead.
struct Silence {
    may_go_on: bool,
    error: anyhow::Error,
}

struct Answer {
    status: StatusCode,
    location: Option<String>,
    body: Bytes,
}

impl AdminApi {
    /// The API at `http://host:port`, or several of these, separated by commas.
    ///
    /// # Errors
    /// The text is no such list.
    pub fn new(urls: &str) -> anyhow::Result<Self> {
        let bases = urls::parse_list(urls, &["http"]).map_err(|why| anyhow!(why))?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { bases, last: Arc::default(), client })
    }

    /// Asks for something. `path` begins with `/` and is encoded already.
    ///
    /// # Errors
    /// What the server said, or that it can't be reached.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.request(Method::GET, path, None).await
    }

    /// As [`AdminApi::get`], of something that may not be there (any more).
    ///
    /// # Errors
    /// As for [`AdminApi::get`].
    pub async fn get_if_there(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let (base, answer) = self.ask_in_turn(&Method::GET, path, None).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Self::value(&base, answer).map(Some)
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
        let (base, answer) = self.ask_in_turn(&method, path, body.as_ref()).await?;
        Self::value(&base, answer)
    }

    /// What was answered, or why not.
    fn value(base: &str, answer: Answer) -> anyhow::Result<Value> {
        let Answer { status, body, .. } = answer;
        if status.is_success() {
            if body.is_empty() {
                return Ok(Value::Null);
            }
            return serde_json::from_slice(&body)
                // /brokers/health answers plain text.
                .or_else(|_| String::from_utf8(body.to_vec()).map(Value::String))
                .with_context(|| format!("{base} answered what is neither JSON nor text"));
        }
        bail!("{}", refusal(base, status, &body))
    }

    /// Asks one address after the other, beginning with the one that answered last. What may have
    /// been done is not asked again.
    async fn ask_in_turn(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(String, Answer)> {
        let mut errors = Vec::new();
        let first = self.last.load(Ordering::Relaxed);
        for turn in 0..self.bases.len() {
            let at = (first + turn) % self.bases.len();
            let is_last = turn + 1 == self.bases.len();
            let is_question = *method == Method::GET;
            let patience = if is_question && !is_last { PATIENCE } else { TIMEOUT };
            match self.follow(&self.bases[at], method, path, body, patience).await {
                // A broker that starts, ends or has lost etcd; another one may be well.
                Ok((base, answer)) if is_question && !is_last && is_unwell(answer.status) => {
                    errors.push(anyhow!(refusal(&base, answer.status, &answer.body)));
                }
                Ok(answer) => {
                    self.last.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(silence) if is_last || !(is_question || silence.may_go_on) => {
                    errors.push(silence.error);
                    break;
                }
                Err(silence) => errors.push(silence.error),
            }
        }
        let said: Vec<String> = errors.iter().map(with_causes).collect();
        bail!("{}", said.join("; "))
    }

    /// Asks one address, and whom it names instead.
    async fn follow(
        &self,
        base: &str,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        patience: Duration,
    ) -> Result<(String, Answer), Silence> {
        let (mut base, mut url) = (base.to_owned(), format!("{base}{path}"));
        for hop in 0..=MAX_REDIRECTS {
            let exchange = self.exchange(method, &base, &url, body);
            let answer = match tokio::time::timeout(patience, exchange).await {
                Ok(answer) => answer?,
                Err(_elapsed) => {
                    let error = anyhow!("{base} gave no answer within {patience:?}");
                    return Err(Silence { may_go_on: false, error });
                }
            };
            let is_redirect = [307, 308].contains(&answer.status.as_u16());
            match &answer.location {
                Some(next) if is_redirect && hop < MAX_REDIRECTS => {
                    base = origin(next).ok_or_else(|| Silence {
                        may_go_on: false,
                        error: anyhow!(
                            "{base} answered with a redirect to {next:?}, which is no URL"
                        ),
                    })?;
                    url.clone_from(next);
                }
                _ => return Ok((base, answer)),
            }
        }
        let error = anyhow!("{base} and others send each other's requests on without an end");
        Err(Silence { may_go_on: false, error })
    }

    async fn exchange(
        &self,
        method: &Method,
        base: &str,
        url: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Silence> {
        let unreachable = |may_go_on, error: anyhow::Error| Silence {
            may_go_on,
            error: error.context(format!(
                "can't reach the admin API at {base} (is a broker running there? its admin port is \
                 8080 unless told otherwise; see --admin-url)"
            )),
        };
        let mut request = Request::builder().method(method).uri(url);
        let mut bytes = Bytes::new();
        if let Some(body) = body {
            request = request.header("content-type", "application/json");
            bytes = body.to_string().into();
        }
        let request =
            request.body(Full::new(bytes)).map_err(|error| unreachable(true, error.into()))?;
        let response = self.client.request(request).await.map_err(|error| {
            // A request that was never sent was not done.
            unreachable(error.is_connect(), error.into())
        })?;
        let status = response.status();
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.map(str::to_owned);
        let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
        let body = body.map_err(|error| Silence {
            may_go_on: false,
            error: anyhow!("the answer of {base} broke off: {error}"),
        })?;
        Ok(Answer { status, location, body: body.to_bytes() })
    }
}

/// Whether this says something of who answered, and nothing of what was asked for.
fn is_unwell(status: StatusCode) -> bool {
    (502..=504).contains(&status.as_u16())
}

/// `http://host:port` of a URL.
fn origin(url: &str) -> Option<String> {
    let url: Uri = url.parse().ok()?;
    Some(format!("{}://{}", url.scheme_str()?, url.authority()?))
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

    /// Answers every connection once with these bytes; gives its URL and what it was asked.
    async fn server(answer: String) -> (String, tokio::sync::mpsc::Receiver<String>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (asked, requests) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut head = vec![0; 4096];
                let read = socket.read(&mut head).await.expect("a request");
                let head = String::from_utf8_lossy(&head[..read]).into_owned();
                asked.send(head).await.expect("somebody looks");
                socket.write_all(answer.as_bytes()).await.expect("it is taken");
            }
        });
        (url, requests)
    }

    fn answer(status: &str, head: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\n{head}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
    }

    /// Where nobody listens.
    async fn nobody() -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        format!("http://{}", listener.local_addr().expect("bound"))
    }

    #[tokio::test]
    async fn an_address_where_nobody_listens_is_passed_over_and_the_good_one_is_remembered() {
        let (good, mut asked) = server(answer("200 OK", "", "[1]")).await;
        let bad = nobody().await;
        let api = AdminApi::new(&format!("{bad},{good}")).expect("two URLs");
        for _ in 0..2 {
            let said = api.put("/x", Some(serde_json::json!({}))).await.expect("answered");
            assert_eq!(said, serde_json::json!([1]));
            assert_eq!(api.last.load(Ordering::Relaxed), 1);
            asked.recv().await.expect("asked");
        }
        let api = AdminApi::new(&format!("{bad},{}", nobody().await)).expect("two URLs");
        let error = api.get("/x").await.expect_err("nobody is there").to_string();
        assert!(error.contains(&bad) && error.contains("; can't reach"), "{error}");
    }

    #[tokio::test]
    async fn a_question_is_asked_again_elsewhere_if_a_broker_can_not_answer_and_a_change_is_not() {
        let (good, mut asked) = server(answer("200 OK", "", "[1]")).await;
        let reason = r#"{"reason":"not ready"}"#;
        for status in ["502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout"] {
            let (unwell, _requests) = server(answer(status, "", reason)).await;
            let api = AdminApi::new(&format!("{unwell},{good}")).expect("two URLs");
            let error = api.put("/x", None).await.expect_err("it may have been done");
            assert!(error.to_string().contains("not ready"), "{error}");
            assert_eq!(api.get("/x").await.expect("answered"), serde_json::json!([1]));
            assert!(asked.recv().await.expect("asked").starts_with("GET "));
            assert_eq!(api.last.load(Ordering::Relaxed), 1);

            let alone = AdminApi::new(&unwell).expect("a URL").get("/x").await.expect_err("unwell");
            assert!(alone.to_string().contains("not ready"), "{alone}");
            let both = AdminApi::new(&format!("{unwell},{}", nobody().await)).expect("two URLs");
            let error = both.get("/x").await.expect_err("no answer").to_string();
            assert!(error.contains("not ready") && error.contains("; can't reach"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_redirect_is_followed_with_the_same_method_and_body_and_not_for_ever() {
        let (owner, mut asked) = server(answer("204 No Content", "", "")).await;
        let head = format!("location: {owner}/a/b\r\n");
        let (other, _requests) = server(answer("307 Temporary Redirect", &head, "")).await;
        let api = AdminApi::new(&other).expect("a URL");
        let said = api.post("/a/b", Some(serde_json::json!({"n": 1}))).await.expect("answered");
        assert_eq!(said, Value::Null);
        let request = asked.recv().await.expect("asked");
        assert!(request.starts_with("POST /a/b ") && request.ends_with("{\"n\":1}"), "{request}");
        let head = "location: nowhere\r\n".to_owned();
        let (lost, _requests) = server(answer("307 Temporary Redirect", &head, "")).await;
        let error = AdminApi::new(&lost).expect("a URL").get("/x").await.expect_err("nowhere");
        assert!(error.to_string().contains("nowhere"), "{error}");
    }
}
