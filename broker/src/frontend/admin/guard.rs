//! The middleware around every request: what it may look like, how large it may be, how long it
//! may take, and that it is carried through.
//!
//! Invariants: a handler runs to its end even if its client goes away or loses patience, so that
//! a deletion is never left half done by a closed connection; how many run is bounded; a panic
//! in one is an answer with status 500 and ends nothing else.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::uri::{PathAndQuery, Uri};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::LengthLimitError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::frontend::admin::config::AdminConfig;
use crate::frontend::admin::error::ApiError;

/// What the middleware goes by.
#[derive(Debug, Clone)]
pub struct Guard {
    config: AdminConfig,
    running: Arc<Semaphore>,
}

impl Guard {
    /// A guard with these limits.
    pub fn new(config: AdminConfig) -> Self {
        let running = Arc::new(Semaphore::new(config.max_requests));
        Self { config, running }
    }

    fn admit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.running).try_acquire_owned().map_err(|_full| {
            let reason = "too many administrative requests are under way; try again";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, reason)
        })
    }
}

/// The middleware.
pub async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match admit(&guard, request).await {
        Ok((request, permit)) => run(&guard, request, permit, next).await,
        Err(error) => error.into_response(),
    }
}

async fn admit(
    guard: &Guard,
    mut request: Request,
) -> Result<(Request, OwnedSemaphorePermit), ApiError> {
    check_encoding(request.uri().path())?;
    check_origin(request.method(), request.headers())?;
    if let Some(uri) = without_trailing_slash(request.uri()) {
        *request.uri_mut() = uri;
    }
    let permit = guard.admit()?;
    let (parts, body) = request.into_parts();
    let body = tokio::time::timeout(guard.config.body_timeout, read_body(guard, body))
        .await
        .map_err(|_elapsed| {
            let reason = "the request's body did not arrive in time";
            ApiError::new(StatusCode::REQUEST_TIMEOUT, reason)
        })??;
    Ok((Request::from_parts(parts, body), permit))
}

async fn read_body(guard: &Guard, body: Body) -> Result<Body, ApiError> {
    let limit = guard.config.max_body_bytes;
    let bytes = to_bytes(body, limit).await.map_err(|error| {
        let source = std::error::Error::source(&error);
        let too_large = source.is_some_and(<dyn std::error::Error>::is::<LengthLimitError>);
        if too_large {
            let reason = format!("the request's body has more than {limit} bytes");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, reason)
        } else {
            ApiError::malformed(format!("the request's body can't be read: {error}"))
        }
    })?;
    Ok(Body::from(bytes))
}

async fn run(
    guard: &Guard,
    request: Request,
    permit: OwnedSemaphorePermit,
    next: Next,
) -> Response {
    let method = request.method().clone();
    let path: String = request.uri().path().chars().take(512).collect();
    let work = tokio::spawn(async move {
        let response = next.run(request).await;
        audit(&method, &path, response.status());
        drop(permit);
        response
    });
    match tokio::time::timeout(guard.config.request_timeout, work).await {
        Ok(Ok(response)) => response,
        Ok(Err(failed)) => {
            tracing::error!(%failed, "an administrative request failed");
            let reason = "the request failed inside the broker; its log says why";
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, reason).into_response()
        }
        Err(_elapsed) => {
            let reason = "no result yet; the work goes on, ask again for its outcome";
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, reason).into_response()
        }
    }
}

/// Every attempt to change something leaves a line, whatever came of it.
fn audit(method: &Method, path: &str, status: StatusCode) {
    if !method.is_safe() {
        tracing::info!(%method, path, status = status.as_u16(), "administrative change");
    }
}

/// Refuses changes that a web page of another site makes its reader's browser send. Without
/// authentication, being able to reach the port is all the right there is, and a browser reaches
/// `localhost` for any page. Tools don't send `Origin`.
fn check_origin(method: &Method, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN).filter(|_| !method.is_safe()) else {
        return Ok(());
    };
    let authority = origin.to_str().ok().and_then(|text| text.split_once("://"));
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes);
    if authority.map(|(_, authority)| authority.as_bytes()) == host && host.is_some() {
        return Ok(());
    }
    let reason = "changes are not taken from web pages of another origin";
    Err(ApiError::new(StatusCode::FORBIDDEN, reason))
}

/// Refuses a `%` that isn't followed by two hexadecimal digits. The router would take it
/// literally, and two spellings of one name would mean two things.
fn check_encoding(path: &str) -> Result<(), ApiError> {
    let mut rest = path.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        let digits = rest.get(at + 1..at + 3).filter(|two| two.iter().all(u8::is_ascii_hexdigit));
        if digits.is_none() {
            let reason = "the path has a % that is not followed by two hexadecimal digits";
            return Err(ApiError::malformed(reason));
        }
        rest = rest.get(at + 3..).unwrap_or_default();
    }
    Ok(())
}

/// Pulsar answers with and without a slash at the end alike.
fn without_trailing_slash(uri: &Uri) -> Option<Uri> {
    let path = uri.path().strip_suffix('/').filter(|path| !path.is_empty())?;
    let text = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::from_maybe_shared(text).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_at_the_end_is_taken_off_and_the_query_stays() {
        let strip = |text: &str| {
            let uri: Uri = text.parse().expect("valid");
            without_trailing_slash(&uri).map(|uri| uri.to_string())
        };
        assert_eq!(strip("/admin/v2/tenants/").as_deref(), Some("/admin/v2/tenants"));
        assert_eq!(strip("/a/?b=c/").as_deref(), Some("/a?b=c/"));
        assert_eq!(strip("/"), None);
        assert_eq!(strip("/a"), None);
    }

    #[test]
    fn a_change_from_another_sites_page_is_refused() {
        let check = |method: Method, origin: &str, host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, origin.parse().expect("valid"));
            headers.insert(header::HOST, host.parse().expect("valid"));
            check_origin(&method, &headers).map_err(|error| error.status.as_u16())
        };
        let own = "localhost:8080";
        assert_eq!(check(Method::POST, "http://localhost:8080", own), Ok(()));
        assert_eq!(check(Method::GET, "http://elsewhere", own), Ok(()));
        for origin in ["http://elsewhere", "http://localhost:81", "null", "localhost:8080"] {
            assert_eq!(check(Method::POST, origin, own), Err(403), "{origin}");
            assert_eq!(check(Method::DELETE, origin, own), Err(403), "{origin}");
        }
        assert_eq!(check_origin(&Method::POST, &HeaderMap::new()), Ok(()));
    }

    #[test]
    fn a_percent_sign_needs_two_hexadecimal_digits() {
        for path in ["/", "/a%2Fb", "/%00%ff", "/a%20"] {
            assert_eq!(check_encoding(path), Ok(()), "{path}");
        }
        for path in ["/%", "/a%2", "/%zz", "/%%20", "/%2g", "/%20%"] {
            assert!(check_encoding(path).is_err(), "{path}");
        }
    }
}
