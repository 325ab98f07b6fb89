//! [`SimTransport`]: a broker's way to the bookies over the simulated network, as the ledger's
//! transport. Beside it [`Door`], the bookie's end.
//!
//! One line leads to each bookie. When it breaks, everything that waits for an answer hears
//! *unreachable*, and the next request opens another one.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use geminga_bookie::bookie::Bookie;
use geminga_bookie::device::memory::MemoryDevice;
use geminga_bookie::done::{AppendAnswer, AppendDone};
use geminga_ledger::transport::{AppendSink, BookieTransport};
use geminga_proto::id::{BookieId, EntryId, LedgerId};
use geminga_proto::storage::{
    AppendRequest, AppendResult, BookieError, BookieInfo, FenceRequest, FenceResult, FencedResult,
    ReadRequest, ReadResult,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::network::{End, HostId, LineId, Network, Place};

/// Requests to one bookie that may wait for an answer.
const MAX_WAITING: usize = 10_000;

/// What a bookie is asked.
#[derive(Debug)]
enum Request {
    Append(AppendRequest),
    Read(ReadRequest),
    Fence(FenceRequest),
    Fenced(Vec<FenceRequest>),
    DeleteHint(Vec<LedgerId>),
    Info,
}

/// What it answers.
#[derive(Debug)]
enum Answer {
    Append(AppendResult),
    Read(ReadResult),
    Fence(FenceResult),
    Fenced(FencedResult),
    DeleteHint(Result<(), BookieError>),
    Info(Result<BookieInfo, BookieError>),
}

/// Who waits for an answer.
enum Waiting {
    Append { sink: Arc<dyn AppendSink>, entry: EntryId },
    Call(oneshot::Sender<Answer>),
}

struct Connection {
    line: LineId,
    waiting: BTreeMap<u64, Waiting>,
}

/// Where each bookie is.
pub type Directory = BTreeMap<BookieId, HostId>;

/// The doors of the bookies that are up.
pub type Doors = Mutex<BTreeMap<HostId, Arc<Door>>>;

/// A broker's way to all bookies.
pub struct SimTransport {
    network: Arc<Network>,
    place: Place,
    directory: Arc<Directory>,
    doors: Arc<Doors>,
    runtime: tokio::runtime::Handle,
    connections: Mutex<BTreeMap<BookieId, Connection>>,
    asked: std::sync::atomic::AtomicU64,
    this: Weak<Self>,
}

impl std::fmt::Debug for SimTransport {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("SimTransport").field("place", &self.place).finish_non_exhaustive()
    }
}

impl SimTransport {
    /// The way from `place`. Must be called inside the host's runtime.
    #[must_use]
    pub fn new(
        network: Arc<Network>,
        place: Place,
        directory: Arc<Directory>,
        doors: Arc<Doors>,
    ) -> Arc<Self> {
        let runtime = tokio::runtime::Handle::current();
        Arc::new_cyclic(|this| Self {
            network,
            place,
            directory,
            doors,
            runtime,
            connections: Mutex::default(),
            asked: std::sync::atomic::AtomicU64::new(0),
            this: Weak::clone(this),
        })
    }

    /// Sends a request over the bookie's line. `Err`: the bookie isn't known, or owes too much.
    fn send(&self, bookie: &BookieId, request: Request, waiting: Waiting) -> Result<(), Waiting> {
        let Some(host) = self.directory.get(bookie).copied() else { return Err(waiting) };
        let number = self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut connections = self.connections.lock();
        let connection =
            connections.entry(bookie.clone()).or_insert_with(|| self.connect(bookie.clone(), host));
        if connection.waiting.len() >= MAX_WAITING {
            return Err(waiting);
        }
        connection.waiting.insert(number, waiting);
        let line = connection.line;
        drop(connections);
        let (network, doors) = (Arc::clone(&self.network), Arc::clone(&self.doors));
        let answered = (Weak::clone(&self.this), bookie.clone());
        let meant_for = bookie.clone();
        let arrive = move || {
            let door = doors.lock().get(&host).cloned();
            // Whoever has followed a bookie at its address answers for itself alone.
            let door = door.filter(|door| door.bookie().identity().bookie == meant_for);
            match door {
                Some(door) => door.serve(Call { line, number, answered }, request),
                // The process runs, but its port isn't open, or the handshake fails.
                None => network.close(line, End::Called),
            }
        };
        self.network.send(line, End::Caller, Box::new(arrive));
        Ok(())
    }

    fn connect(&self, bookie: BookieId, host: HostId) -> Connection {
        let this = Weak::clone(&self.this);
        let broken = move || {
            if let Some(transport) = this.upgrade() {
                transport.broken(&bookie);
            }
        };
        let line = self.network.open(self.place, host, Box::new(broken));
        Connection { line, waiting: BTreeMap::new() }
    }

    /// The line to a bookie broke: there is no other one before this is heard.
    fn broken(&self, bookie: &BookieId) {
        let Some(connection) = self.connections.lock().remove(bookie) else { return };
        for (_, waiting) in connection.waiting {
            fail(bookie, waiting);
        }
    }

    fn answered(&self, bookie: &BookieId, number: u64, answer: Answer) {
        let waiting = {
            let mut connections = self.connections.lock();
            connections.get_mut(bookie).and_then(|found| found.waiting.remove(&number))
        };
        match (waiting, answer) {
            (Some(Waiting::Append { sink, entry }), Answer::Append(result)) => {
                sink.batch_begin();
                sink.append_done(bookie, entry, result);
                sink.batch_end();
            }
            // Whoever asked may have given up.
            (Some(Waiting::Call(asker)), answer) => drop(asker.send(answer)),
            (Some(Waiting::Append { .. }) | None, _) => {}
        }
    }

    async fn call(&self, bookie: &BookieId, request: Request) -> Option<Answer> {
        let (asker, answer) = oneshot::channel();
        if self.send(bookie, request, Waiting::Call(asker)).is_err() {
            return None;
        }
        answer.await.ok()
    }
}

/// Tells that there is no answer.
fn fail(bookie: &BookieId, waiting: Waiting) {
    match waiting {
        Waiting::Append { sink, entry } => {
            sink.append_done(bookie, entry, Err(BookieError::Unreachable));
        }
        // Its asker hears that by its end of the channel.
        Waiting::Call(asker) => drop(asker),
    }
}

#[async_trait]
impl BookieTransport for SimTransport {
    fn append(&self, bookie: &BookieId, request: AppendRequest, sink: &Arc<dyn AppendSink>) {
        let waiting = Waiting::Append { sink: Arc::clone(sink), entry: request.entry };
        if let Err(waiting) = self.send(bookie, Request::Append(request), waiting) {
            let bookie = bookie.clone();
            self.runtime.spawn(async move { fail(&bookie, waiting) });
        }
    }

    async fn read(&self, bookie: &BookieId, request: ReadRequest) -> ReadResult {
        match self.call(bookie, Request::Read(request)).await {
            Some(Answer::Read(result)) => result,
            _ => Err(BookieError::Unreachable),
        }
    }

    async fn fence(&self, bookie: &BookieId, request: FenceRequest) -> FenceResult {
        match self.call(bookie, Request::Fence(request)).await {
            Some(Answer::Fence(result)) => result,
            _ => Err(BookieError::Unreachable),
        }
    }

    async fn fenced(&self, bookie: &BookieId, ledgers: Vec<FenceRequest>) -> FencedResult {
        match self.call(bookie, Request::Fenced(ledgers)).await {
            Some(Answer::Fenced(result)) => result,
            _ => Err(BookieError::Unreachable),
        }
    }

    async fn delete_hint(
        &self,
        bookie: &BookieId,
        ledgers: Vec<LedgerId>,
    ) -> Result<(), BookieError> {
        match self.call(bookie, Request::DeleteHint(ledgers)).await {
            Some(Answer::DeleteHint(result)) => result,
            _ => Err(BookieError::Unreachable),
        }
    }

    async fn info(&self, bookie: &BookieId) -> Result<BookieInfo, BookieError> {
        match self.call(bookie, Request::Info).await {
            Some(Answer::Info(result)) => result,
            _ => Err(BookieError::Unreachable),
        }
    }
}

/// A request that wants an answer.
#[derive(Debug, Clone)]
struct Call {
    line: LineId,
    number: u64,
    answered: (Weak<SimTransport>, BookieId),
}

/// A bookie's open port.
#[derive(Debug)]
pub struct Door {
    bookie: Bookie,
    replies: Arc<Replies>,
    waiter: Arc<dyn AppendDone>,
}

impl Door {
    /// Opens it. A disk without power answers nobody any more.
    #[must_use]
    pub fn new(network: Arc<Network>, bookie: Bookie, device: MemoryDevice) -> Arc<Self> {
        let replies = Arc::new(Replies { network, device, appends: Mutex::default() });
        let waiter = Arc::clone(&replies) as Arc<dyn AppendDone>;
        Arc::new(Self { bookie, replies, waiter })
    }

    /// The bookie behind it.
    #[must_use]
    pub fn bookie(&self) -> &Bookie {
        &self.bookie
    }

    /// Called inside the bookie's runtime.
    fn serve(&self, call: Call, request: Request) {
        let (bookie, replies) = (self.bookie.clone(), Arc::clone(&self.replies));
        match request {
            Request::Append(request) => self.append(request, call),
            Request::Read(request) => drop(tokio::spawn(async move {
                replies.reply(&call, Answer::Read(bookie.read(request).await));
            })),
            Request::Fence(request) => drop(tokio::spawn(async move {
                replies.reply(&call, Answer::Fence(bookie.fence(request).await));
            })),
            Request::Fenced(ledgers) => {
                replies.reply(&call, Answer::Fenced(Ok(bookie.fenced(&ledgers))));
            }
            Request::DeleteHint(ledgers) => {
                bookie.delete_hint(&ledgers);
                replies.reply(&call, Answer::DeleteHint(Ok(())));
            }
            Request::Info => replies.reply(&call, Answer::Info(Ok(bookie.info()))),
        }
    }

    fn append(&self, request: AppendRequest, call: Call) {
        let tag = {
            let mut appends = self.replies.appends.lock();
            let tag = appends.next;
            appends.next += 1;
            appends.waiting.insert(tag, call);
            tag
        };
        if let Err(error) = self.bookie.append(request, &self.waiter, tag) {
            let call = self.replies.appends.lock().waiting.remove(&tag);
            if let Some(call) = call {
                self.replies.reply(&call, Answer::Append(Err(error)));
            }
        }
    }
}

#[derive(Debug, Default)]
struct Appends {
    next: u64,
    waiting: BTreeMap<u64, Call>,
}

/// Sends answers back. One waiter for all appends, so that their order follows from the log's.
#[derive(Debug)]
struct Replies {
    network: Arc<Network>,
    device: MemoryDevice,
    appends: Mutex<Appends>,
}

impl Replies {
    fn reply(&self, call: &Call, answer: Answer) {
        // What happens after the power went has never happened.
        if self.device.is_dead() {
            return;
        }
        let ((transport, bookie), number) = (call.answered.clone(), call.number);
        let arrive = move || {
            if let Some(transport) = transport.upgrade() {
                transport.answered(&bookie, number, answer);
            }
        };
        self.network.send(call.line, End::Called, Box::new(arrive));
    }
}

impl AppendDone for Replies {
    fn appended(&self, answers: &[AppendAnswer]) {
        for answer in answers {
            let call = self.appends.lock().waiting.remove(&answer.tag);
            if let Some(call) = call {
                self.reply(&call, Answer::Append(answer.result));
            }
        }
    }
}
