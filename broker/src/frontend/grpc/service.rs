//! The service `Messaging`: answers calls, and starts a task for each stream.

use std::sync::Arc;

use geminga_meta::bundle::HashRange;
use geminga_proto::stream::{
    ChunkedBody, Messages, NoMessages, RequestBody as _, WholeBodies, path, respond,
};
use geminga_proto::v1;
use geminga_proto::v1::ErrorCode;
use geminga_proto::v1::messaging_server::{Messaging, MessagingServer};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::core::api::Lookup;
use crate::frontend::grpc::GrpcState;
use crate::frontend::grpc::config::{self, GrpcConfig};
use crate::frontend::grpc::consume::ConsumeStream;
use crate::frontend::grpc::outbound::{EndWithTask, Item, Outbound, OutboundStream};
use crate::frontend::grpc::produce::ProduceStream;
use crate::frontend::grpc::queues::Registration;
use crate::frontend::grpc::{convert, error};

/// The methods that are streams.
const STREAMS: &[&str] = &[path::PRODUCE, path::CONSUME];
/// Characters of a client's name that are logged.
const LOGGED_NAME: usize = 80;

#[derive(Debug)]
pub(super) struct MessagingService {
    config: Arc<GrpcConfig>,
    state: GrpcState,
    /// True once the server stops.
    stopping: watch::Receiver<bool>,
}

fn peer<T>(request: &Request<T>) -> String {
    request.remote_addr().map_or_else(|| "an unknown peer".to_owned(), |addr| addr.to_string())
}

impl MessagingService {
    pub(super) fn new(
        config: GrpcConfig,
        state: GrpcState,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self { config: Arc::new(config), state, stopping }
    }

    /// The server, of which no message is larger than any request may be.
    pub(super) fn into_server(self) -> WholeBodies<MessagingServer<Self>> {
        let largest = self.max_request_bytes();
        let server = MessagingServer::new(self).max_decoding_message_size(largest);
        WholeBodies::new(server, STREAMS)
    }

    fn max_request_bytes(&self) -> usize {
        self.state.broker.config().max_message_bytes as usize + config::DECODE_SLACK_BYTES
    }

    fn refuse_stopping(&self) -> Result<(), Status> {
        if *self.stopping.borrow() {
            let message = "the broker serves nothing any more; look the topic up again";
            return Err(error::status(Code::Unavailable, ErrorCode::ShuttingDown, message));
        }
        Ok(())
    }

    /// The queue of a stream's answers, and what its task holds as long as it serves the stream.
    fn outbound<I: Item, T>(
        &self,
        kind: &str,
        request: &Request<T>,
    ) -> (Arc<Outbound<I>>, (Registration, EndWithTask<I>)) {
        let clock = Arc::clone(&self.state.broker.env().clock);
        let outbound = Outbound::new(self.config.response_queue_bytes, clock);
        let name = format!("grpc {kind} stream of {}", peer(request));
        let listed = self.state.queues.register(name, &outbound);
        let ends = EndWithTask(Arc::clone(&outbound));
        (outbound, (listed, ends))
    }
}

#[tonic::async_trait]
impl Messaging for MessagingService {
    type ProduceStream = NoMessages<v1::ProduceResponse>;
    type ConsumeStream = NoMessages<v1::ConsumeResponse>;

    async fn handshake(
        &self,
        request: Request<v1::HandshakeRequest>,
    ) -> Result<Response<v1::HandshakeResponse>, Status> {
        let peer = peer(&request);
        let asked = request.into_inner();
        let (min, max) = (*geminga_proto::PROTOCOL.start(), *geminga_proto::PROTOCOL.end());
        if asked.max_protocol < min || asked.min_protocol > max {
            let message = format!(
                "this broker speaks protocol {min} to {max}, the client {} to {}; upgrade the \
                 older one",
                asked.min_protocol, asked.max_protocol
            );
            let code = ErrorCode::ProtocolVersion;
            return Err(error::status(Code::FailedPrecondition, code, message));
        }
        let cluster_id = self.state.cluster_id.as_str();
        if !asked.expected_cluster_id.is_empty() && asked.expected_cluster_id != cluster_id {
            let message = format!(
                "this broker belongs to cluster {cluster_id}, the client expects {:?}; check the \
                 service URL",
                asked.expected_cluster_id.chars().take(LOGGED_NAME).collect::<String>()
            );
            let code = ErrorCode::WrongCluster;
            return Err(error::status(Code::FailedPrecondition, code, message));
        }
        let client: String = asked.client.chars().take(LOGGED_NAME).collect();
        tracing::debug!(%peer, ?client, "a client shook hands");
        let config = self.state.broker.config();
        Ok(Response::new(v1::HandshakeResponse {
            protocol: asked.max_protocol.min(max),
            cluster_id: cluster_id.to_owned(),
            broker_id: config.broker_id.to_string(),
            max_message_bytes: config.max_message_bytes,
        }))
    }

    async fn lookup(
        &self,
        request: Request<v1::LookupRequest>,
    ) -> Result<Response<v1::LookupResponse>, Status> {
        let broker = &self.state.broker;
        let found = match convert::topic(&request.into_inner().topic) {
            Ok(topic) => match broker.lookup(&topic).await {
                Ok(found) => Ok((found, broker.range_of(&topic))),
                Err(error) => Err(error::topic(&error)),
            },
            Err(error) => Err(error),
        };
        let range = |range: HashRange| v1::HashRange { first: range.first, last: range.last };
        let answer = match found {
            Ok((found, bundle)) => {
                let (broker_id, service_url) = match found {
                    Lookup::Here => (broker.config().broker_id.to_string(), String::new()),
                    Lookup::Elsewhere { broker_id, service_url, .. } => (broker_id, service_url),
                };
                let (error, bundle) = (None, bundle.map(range));
                v1::LookupResponse { error, broker_id, service_url, partitions: 0, bundle }
            }
            Err(error) => {
                v1::LookupResponse { error: Some(error), ..v1::LookupResponse::default() }
            }
        };
        Ok(Response::new(answer))
    }

    async fn produce(
        &self,
        mut request: Request<Streaming<v1::ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        self.refuse_stopping()?;
        let requests = Messages::requests(request.take_body()?, self.max_request_bytes());
        let (outbound, served) = self.outbound("produce", &request);
        let (broker, config) = (self.state.broker.clone(), Arc::clone(&self.config));
        let stream = ProduceStream::new(broker, config, Arc::clone(&outbound));
        let stopping = self.stopping.clone();
        tokio::spawn(async move {
            stream.run(requests, stopping).await;
            drop(served);
        });
        Ok(respond(Body::new(ChunkedBody::responses(OutboundStream(outbound)))))
    }

    async fn consume(
        &self,
        mut request: Request<Streaming<v1::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        self.refuse_stopping()?;
        let requests = Messages::requests(request.take_body()?, self.max_request_bytes());
        let (outbound, served) = self.outbound("consume", &request);
        let (broker, config) = (self.state.broker.clone(), Arc::clone(&self.config));
        let stream = ConsumeStream::new(broker, config, Arc::clone(&outbound));
        let stopping = self.stopping.clone();
        tokio::spawn(async move {
            stream.run(requests, stopping).await;
            drop(served);
        });
        Ok(respond(Body::new(ChunkedBody::responses(OutboundStream(outbound)))))
    }
}
