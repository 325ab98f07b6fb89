//! Opens an append stream whose requests are an [`AppendBody`]; its answers come as on any stream.

use geminga_proto::codec::SizedCodec;
use geminga_proto::{BOOKIE_HEADER, CLUSTER_HEADER, v1};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codec::Codec;
use tonic::codegen::http;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::transport::grpc::append_body::{AppendBody, Batch};
use crate::transport::grpc::session::{Addressee, Broken};

const PATH: &str = "/geminga.v1.Bookie/Append";

/// What is received on `batches` goes out; messages of more than `max_message_bytes` don't come in.
pub(super) async fn open(
    mut channel: Channel,
    addressee: &Addressee,
    batches: mpsc::Receiver<Batch>,
    max_message_bytes: usize,
) -> Result<Streaming<v1::AppendAnswers>, Broken> {
    let request = http::Request::post(PATH)
        .version(http::Version::HTTP_2)
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .header(CLUSTER_HEADER, addressee.cluster.as_bytes())
        .header(BOOKIE_HEADER, addressee.bookie.as_bytes())
        .body(Body::new(AppendBody::new(batches)))
        .map_err(|error| Broken::Name(error.to_string()))?;
    std::future::poll_fn(|context| GrpcService::poll_ready(&mut channel, context)).await?;
    let response = GrpcService::call(&mut channel, request).await?;
    // An error without any message comes in the headers.
    if let Some(status) = Status::from_header_map(response.headers())
        && status.code() != Code::Ok
    {
        return Err(status.into());
    }
    let code = response.status();
    let decoder = SizedCodec::<v1::AppendBatch, v1::AppendAnswers>::default().decoder();
    let body = response.into_body();
    Ok(Streaming::new_response(decoder, body, code, None, Some(max_message_bytes)))
}
