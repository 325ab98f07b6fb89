//! [`open`]: begins a stream as a client.

use prost::Message;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::{Stream, StreamExt};
use tonic::codegen::{StdError, http};
use tonic::{Code, Status};

use super::chunks::{ChunkedBody, IntoChunks};
use super::messages::Messages;

/// Calls the method at `path`: `requests` go out, and what comes back are messages of at most
/// `max_bytes`. `headers` go along with gRPC's own.
///
/// # Errors
/// The connection failed, or the method refused. A failed connection is a status with a source.
pub async fn open<C, R, A>(
    channel: &mut C,
    path: &'static str,
    mut headers: http::HeaderMap,
    requests: R,
    max_bytes: usize,
) -> Result<Messages<A>, Status>
where
    C: GrpcService<Body, ResponseBody = Body>,
    C::Error: Into<StdError>,
    R: Stream<Item: IntoChunks> + Send + 'static,
    A: Message + Default,
{
    let requests = Box::pin(requests).map(Ok as fn(R::Item) -> Result<R::Item, Status>);
    let mut request = http::Request::new(Body::new(ChunkedBody::requests(requests)));
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = http::Uri::from(PathAndQuery::from_static(path));
    headers.insert("te", http::HeaderValue::from_static("trailers"));
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    *request.headers_mut() = headers;
    let failed = |error: C::Error| Status::from_error(error.into());
    std::future::poll_fn(|context| channel.poll_ready(context)).await.map_err(failed)?;
    let response = channel.call(request).await.map_err(failed)?;
    // An error without any message comes in the headers.
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok => Err(status),
        None if response.status() != http::StatusCode::OK => {
            Err(Status::unknown(format!("HTTP status {}", response.status())))
        }
        _ => Ok(Messages::responses(response.into_body(), max_bytes)),
    }
}
