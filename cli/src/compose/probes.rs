//! A bookie's port for metrics and probes: `/metrics`, `/readyz` and `/livez` over HTTP/1.1, as a
//! broker's admin port has them. It takes no requests that change anything.
//!
//! Bounded: connections, and the time of a request's head; one that does neither is closed.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use geminga_broker::frontend::admin::Readiness;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Connections at once: scrapers and probes are few.
const MAX_CONNECTIONS: usize = 64;
/// How long a request's head may take, and a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Wait after a failed accept, which mostly means that the process is out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the port answers with. Clones share everything.
#[derive(Debug, Clone)]
pub(super) struct Probes {
    registry: Arc<Registry>,
    readiness: Readiness,
}

impl Probes {
    /// Shows these figures, and on `/readyz` this.
    pub fn new(registry: Registry, readiness: Readiness) -> Self {
        Self { registry: Arc::new(registry), readiness }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if *method != Method::GET && *method != Method::HEAD {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "this port only answers GET");
        }
        match path.trim_end_matches('/') {
            "/livez" => plain(StatusCode::OK, "ok"),
            "/readyz" => match self.readiness.why_not() {
                None => plain(StatusCode::OK, "ok"),
                Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, &why),
            },
            "/metrics" => {
                let mut text = String::new();
                if encode(&mut text, &self.registry).is_err() {
                    tracing::error!("metrics can't be encoded");
                    let what = "the metrics can't be encoded";
                    return plain(StatusCode::INTERNAL_SERVER_ERROR, what);
                }
                with_type(StatusCode::OK, OPEN_METRICS, text)
            }
            _ => plain(
                StatusCode::NOT_FOUND,
                "this is a bookie's port for metrics: /metrics, /readyz and /livez; administration \
                 is at a broker's admin port",
            ),
        }
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

fn with_type(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

/// Serves until `stopped` is done; connections that are open then are closed.
pub(super) async fn serve(
    listener: TcpListener,
    probes: Probes,
    stopped: impl Future<Output = ()>,
) {
    let mut connections = JoinSet::new();
    tokio::pin!(stopped);
    loop {
        let accepted = tokio::select! {
            () = &mut stopped => return,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
        };
        match accepted {
            Ok((stream, _)) => drop(connections.spawn(speak(stream, probes.clone()))),
            Err(error) => {
                tracing::warn!(%error, "the metrics port can't accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn speak(stream: TcpStream, probes: Probes) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = probes.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection of the metrics port ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn get(address: &str, path: &str) -> String {
        let mut socket = TcpStream::connect(address).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.expect("taken");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    #[tokio::test]
    async fn probes_and_metrics_are_answered_until_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let mut registry = Registry::default();
        let gauge = prometheus_client::metrics::gauge::Gauge::<i64>::default();
        registry.register("geminga_bookie_ledgers", "Ledgers", gauge.clone());
        gauge.set(7);
        let readiness = Readiness::default();
        let probes = Probes::new(registry, readiness.clone());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, probes, async { drop(stopped.await) }));
        assert!(get(&address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(get(&address, "/readyz").await.starts_with("HTTP/1.1 503"));
        readiness.set(true);
        assert!(get(&address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let failed = Arc::new(std::sync::OnceLock::<String>::new());
        let asked = Arc::clone(&failed);
        readiness.ask(move || asked.get().cloned());
        assert!(get(&address, "/readyz").await.starts_with("HTTP/1.1 200"));
        failed.set("a sync failed".to_owned()).expect("once");
        let broken = get(&address, "/readyz").await;
        assert!(broken.starts_with("HTTP/1.1 503") && broken.contains("sync"), "{broken}");
        let metrics = get(&address, "/metrics").await;
        assert!(metrics.contains("geminga_bookie_ledgers 7"), "{metrics}");
        assert!(get(&address, "/admin/v2/tenants").await.starts_with("HTTP/1.1 404"));
        readiness.refuse("the disk is wet");
        readiness.set(true);
        let trouble = get(&address, "/readyz").await;
        assert!(trouble.starts_with("HTTP/1.1 503") && trouble.contains("wet"), "{trouble}");
        assert!(get(&address, "/livez").await.starts_with("HTTP/1.1 200"));
        stop.send(()).expect("it serves");
        serving.await.expect("it ends well");
        assert!(TcpStream::connect(&address).await.is_err());
    }
}
