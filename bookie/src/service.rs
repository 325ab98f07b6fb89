//! [`BookieService`]: the gRPC face of a [`Bookie`].
//!
//! Decodes, calls, encodes; decides nothing. Append and read are streams: answers that are ready
//! together go out together. Everything is bounded: connections, streams, appends in flight on one,
//! reads in flight and the bytes of their answers, of one stream and of all, bytes of a message.
//! What makes no sense ends in a status that says why.

use geminga_proto::PROTOCOL;
use geminga_proto::append_wire;
use geminga_proto::id::{Lac, LedgerId, LedgerToken};
use geminga_proto::storage::{BookieError, FenceRequest, ScrubProgress};
use geminga_proto::stream::{
    ChunkedBody, Messages, NoMessages, RequestBody as _, WholeBodies, path, respond,
};
use geminga_proto::v1 as pb;
use geminga_proto::v1::bookie_server::BookieServer;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming};

use crate::bookie::Bookie;

mod append_stream;
mod guard;
mod read_stream;
mod server;

pub use server::{ServiceConfig, serve};

use append_stream::AppendStream;
use guard::{Guarded, Stopping, StreamLimit, check_meant};
use read_stream::ReadBudget;

/// Appends of one stream that may wait for their answer; more are not read from the socket.
const MAX_APPENDS_IN_FLIGHT: usize = 16_384;
/// Largest message that is taken, beside one entry of the largest size.
const MAX_BATCH_BYTES: usize = 16 << 20;
/// Most ledgers in one hint, or in one question.
const MAX_HINTED: usize = 10_000;

/// The methods that are streams.
const STREAMS: &[&str] = &[path::APPEND, path::READ];

/// Serves a bookie over gRPC.
#[derive(Debug, Clone)]
pub struct BookieService {
    bookie: Bookie,
    streams: StreamLimit,
    untaken: ReadBudget,
    stopping: Stopping,
}

impl BookieService {
    /// A service for `bookie` with the default limits.
    #[must_use]
    pub fn new(bookie: Bookie) -> Self {
        Self::with_limits(bookie, &ServiceConfig::default())
    }

    /// A service for `bookie`.
    #[must_use]
    pub fn with_limits(bookie: Bookie, config: &ServiceConfig) -> Self {
        let streams = StreamLimit::new(config.max_streams);
        let untaken = ReadBudget::new(config.max_untaken_bytes, config.untaken_wait);
        Self { bookie, streams, untaken, stopping: Stopping::never() }
    }

    /// Its streams end, with what was taken being answered, once this turns `true`.
    fn until(self, stopping: watch::Receiver<bool>) -> Self {
        Self { stopping: Stopping::new(stopping), ..self }
    }

    /// The server to add to a router.
    #[must_use]
    pub fn into_server(self) -> WholeBodies<BookieServer<Self>> {
        WholeBodies::new(BookieServer::new(self), STREAMS)
    }

    /// Bytes that a message of a stream may have.
    fn max_message_bytes(&self) -> usize {
        self.bookie.config().max_entry_bytes as usize + MAX_BATCH_BYTES
    }
}

#[tonic::async_trait]
impl pb::bookie_server::Bookie for BookieService {
    type AppendStream = NoMessages<pb::AppendAnswers>;
    type ReadStream = NoMessages<pb::ReadAnswers>;

    async fn handshake(
        &self,
        request: Request<pb::BookieHandshakeRequest>,
    ) -> Result<Response<pb::BookieHandshakeResponse>, Status> {
        let request = request.into_inner();
        let identity = self.bookie.identity();
        let protocol = choose_protocol(request.min_protocol, request.max_protocol)?;
        if request.cluster_id != identity.cluster.as_str() {
            return Err(Status::failed_precondition(format!(
                "this bookie belongs to cluster {}, not to {:?}",
                identity.cluster,
                clipped(&request.cluster_id)
            )));
        }
        let expected = request.expected_bookie_id.as_str();
        if !expected.is_empty() && expected != identity.bookie.as_str() {
            return Err(Status::failed_precondition(format!(
                "this is bookie {}, not {:?}",
                identity.bookie,
                clipped(expected)
            )));
        }
        Ok(Response::new(pb::BookieHandshakeResponse {
            protocol,
            cluster_id: identity.cluster.to_string(),
            bookie_id: identity.bookie.to_string(),
        }))
    }

    async fn append(
        &self,
        mut request: Request<Streaming<pb::AppendBatch>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        check_meant(request.metadata(), self.bookie.identity())?;
        let place = self.streams.take()?;
        let (body, limit) = (request.take_body()?, self.max_message_bytes());
        let requests = Messages::requests_by(body, limit, |batch| append_wire::decode(batch));
        let (bookie, stopping) = (self.bookie.clone(), self.stopping.clone());
        let answers = AppendStream::start(bookie, requests, MAX_APPENDS_IN_FLIGHT, stopping);
        Ok(respond(Body::new(ChunkedBody::responses(Guarded::new(answers, place)))))
    }

    async fn read(
        &self,
        mut request: Request<Streaming<pb::ReadBatch>>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        check_meant(request.metadata(), self.bookie.identity())?;
        let place = self.streams.take()?;
        let (bookie, untaken) = (self.bookie.clone(), self.untaken.clone());
        let stopping = self.stopping.clone();
        let requests = Messages::requests(request.take_body()?, self.max_message_bytes());
        let answers = Box::pin(read_stream::answer(bookie, untaken, requests, stopping));
        Ok(respond(Body::new(ChunkedBody::responses(Guarded::new(answers, place)))))
    }

    async fn fence(
        &self,
        request: Request<pb::FenceRequest>,
    ) -> Result<Response<pb::FenceAnswer>, Status> {
        check_meant(request.metadata(), self.bookie.identity())?;
        Ok(Response::new(fence(&self.bookie, request.into_inner()).await))
    }

    async fn ledgers_fenced(
        &self,
        request: Request<pb::LedgersFencedRequest>,
    ) -> Result<Response<pb::LedgersFencedAnswer>, Status> {
        check_meant(request.metadata(), self.bookie.identity())?;
        let asked = fence_requests(&request.into_inner())?;
        let mut bits = vec![0_u8; asked.len().div_ceil(8)];
        for (at, fenced) in self.bookie.fenced(&asked).into_iter().enumerate() {
            bits[at / 8] |= u8::from(fenced) << (at % 8);
        }
        Ok(Response::new(pb::LedgersFencedAnswer { fenced: bits.into() }))
    }

    async fn delete_hint(
        &self,
        request: Request<pb::DeleteHintRequest>,
    ) -> Result<Response<pb::DeleteHintAnswer>, Status> {
        check_meant(request.metadata(), self.bookie.identity())?;
        let ledgers = request.into_inner().ledger_ids;
        if ledgers.len() > MAX_HINTED {
            let text = format!("at most {MAX_HINTED} ledgers fit into one hint");
            return Err(Status::invalid_argument(text));
        }
        let ledgers: Vec<LedgerId> = ledgers.into_iter().map(LedgerId).collect();
        self.bookie.delete_hint(&ledgers);
        Ok(Response::new(pb::DeleteHintAnswer {}))
    }

    async fn info(
        &self,
        _request: Request<pb::InfoRequest>,
    ) -> Result<Response<pb::InfoAnswer>, Status> {
        let (info, identity) = (self.bookie.info(), self.bookie.identity());
        Ok(Response::new(pb::InfoAnswer {
            bookie_id: identity.bookie.to_string(),
            cluster_id: identity.cluster.to_string(),
            sync_mode: info.sync_mode.as_str().to_owned(),
            total_bytes: info.total_bytes,
            free_bytes: info.free_bytes,
            writable: info.writable,
            ledgers: info.ledgers,
            segments: info.segments,
            lag_ms: info.lag.oldest_ms,
            lag_bytes: info.lag.bytes,
        }))
    }

    async fn scrub(
        &self,
        request: Request<pb::ScrubRequest>,
    ) -> Result<Response<pb::ScrubAnswer>, Status> {
        check_meant(request.metadata(), self.bookie.identity())?;
        let progress = if request.into_inner().start {
            self.bookie.scrub()
        } else {
            self.bookie.scrub_progress()
        };
        Ok(Response::new(scrub_answer(progress)))
    }
}

/// How far a scrub is, on the wire.
fn scrub_answer(progress: ScrubProgress) -> pb::ScrubAnswer {
    let ScrubProgress { total_bytes, done_bytes, running, damaged_entries } = progress;
    pb::ScrubAnswer { total_bytes, done_bytes, running, damaged_entries }
}

/// The newest protocol that both sides speak.
fn choose_protocol(least: u32, most: u32) -> Result<u32, Status> {
    let chosen = most.min(*PROTOCOL.end());
    if chosen >= least && PROTOCOL.contains(&chosen) {
        return Ok(chosen);
    }
    Err(Status::failed_precondition(format!(
        "this bookie speaks protocols {} to {}, the other side {least} to {most}: \
         use releases that overlap",
        PROTOCOL.start(),
        PROTOCOL.end()
    )))
}

async fn fence(bookie: &Bookie, request: pb::FenceRequest) -> pb::FenceAnswer {
    let fenced = bookie.fence(FenceRequest {
        ledger: LedgerId(request.ledger_id),
        token: LedgerToken(request.token),
    });
    let (status, lac) = match fenced.await {
        Ok(lac) => (pb::BookieStatus::Ok, lac),
        Err(error) => (status_of(error), Lac::NONE),
    };
    let request_id = request.request_id;
    pb::FenceAnswer { status: status.into(), lac: lac.to_wire(), request_id }
}

/// Ledgers with their tokens, as they are asked about.
fn fence_requests(request: &pb::LedgersFencedRequest) -> Result<Vec<FenceRequest>, Status> {
    let (ledgers, tokens) = (&request.ledger_ids, &request.tokens);
    if ledgers.len() > MAX_HINTED || ledgers.len() != tokens.len() {
        let text = format!("one token for each of at most {MAX_HINTED} ledgers is needed");
        return Err(Status::invalid_argument(text));
    }
    let pairs = ledgers.iter().zip(tokens);
    let request = |(ledger, token): (&u64, &u64)| FenceRequest {
        ledger: LedgerId(*ledger),
        token: LedgerToken(*token),
    };
    Ok(pairs.map(request).collect())
}

/// What a peer said, short enough for a message.
fn clipped(text: &str) -> String {
    text.chars().take(80).collect()
}

/// The wire's name of an error.
fn status_of(error: BookieError) -> pb::BookieStatus {
    match error {
        BookieError::Fenced => pb::BookieStatus::FencedLedger,
        BookieError::WrongToken => pb::BookieStatus::WrongToken,
        BookieError::DiskFull => pb::BookieStatus::DiskFull,
        BookieError::ReadOnly => pb::BookieStatus::ReadOnly,
        BookieError::NoSuchEntry => pb::BookieStatus::NoSuchEntry,
        BookieError::UnknownEntry => pb::BookieStatus::UnknownEntry,
        BookieError::CorruptEntry => pb::BookieStatus::CorruptEntry,
        BookieError::TooLarge => pb::BookieStatus::TooLarge,
        BookieError::Overloaded => pb::BookieStatus::Overloaded,
        BookieError::Invalid => pb::BookieStatus::Invalid,
        // A bookie never answers that it doesn't answer; were it to, its outcome is not definite.
        BookieError::Io | BookieError::Unreachable => pb::BookieStatus::IoError,
    }
}

#[cfg(test)]
mod tests;
