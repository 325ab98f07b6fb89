//! Model bookies behind the transport trait, for tests of the runtime and of what is built on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use geminga_proto::id::{BookieId, LedgerId};
use geminga_proto::storage::{
    AppendRequest, BookieError, BookieInfo, FenceRequest, FenceResult, FencedResult, Lag,
    ReadRequest, ReadResult, SyncMode,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::harness::bookie::{Answer, Ask, ModelBookie};
use crate::transport::{AppendSink, BookieTransport};

#[derive(Debug)]
enum Waiter {
    Append(Arc<dyn AppendSink>),
    Other(oneshot::Sender<Answer>),
}

#[derive(Debug, Default)]
struct Node {
    disk: ModelBookie,
    down: bool,
    hung: bool,
    waiting: BTreeMap<usize, Waiter>,
    ready: Vec<(Waiter, Answer)>,
    asked: usize,
    probes: usize,
    hints: Vec<LedgerId>,
}

impl Node {
    fn ask(&mut self, ask: Ask, waiter: Waiter) {
        self.asked += 1;
        if self.down {
            self.ready.push((waiter, ask.refusal(BookieError::Unreachable)));
            return;
        }
        match self.disk.ask(self.asked, ask) {
            Some(answer) => self.ready.push((waiter, answer)),
            None => {
                self.waiting.insert(self.asked, waiter);
            }
        }
    }

    fn take_ready(&mut self) -> Vec<(Waiter, Answer)> {
        if self.hung {
            return Vec::new();
        }
        for (number, answer) in self.disk.sync().0 {
            if let Some(waiter) = self.waiting.remove(&number) {
                self.ready.push((waiter, answer));
            }
        }
        std::mem::take(&mut self.ready)
    }
}

#[derive(Debug)]
struct Shared {
    nodes: Mutex<BTreeMap<BookieId, Node>>,
    wake: Notify,
}

/// Some model bookies. Cheap to clone; needs a tokio runtime.
#[derive(Debug, Clone)]
pub struct ModelTransport {
    shared: Arc<Shared>,
}

impl ModelTransport {
    /// Bookies of these names, all up and empty.
    #[must_use]
    pub fn new(names: &[BookieId]) -> Self {
        let nodes = names.iter().map(|name| (name.clone(), Node::default())).collect();
        let shared = Arc::new(Shared { nodes: Mutex::new(nodes), wake: Notify::new() });
        let weak = Arc::downgrade(&shared);
        tokio::spawn(async move {
            while let Some(shared) = weak.upgrade() {
                for bookie in shared.names() {
                    shared.answer(&bookie);
                }
                let woken = tokio::time::timeout(
                    std::time::Duration::from_millis(20),
                    shared.wake.notified(),
                );
                // Looks again after a while in any case, to notice that it isn't needed any more.
                drop(woken.await);
            }
        });
        Self { shared }
    }

    fn change<T>(&self, bookie: &BookieId, change: impl FnOnce(&mut Node) -> T) -> T {
        let mut nodes = self.shared.nodes.lock();
        let changed = change(nodes.entry(bookie.clone()).or_default());
        drop(nodes);
        self.shared.wake.notify_one();
        changed
    }

    /// Looks at a bookie's disk, or changes it.
    pub fn with_disk<T>(&self, bookie: &BookieId, look: impl FnOnce(&mut ModelBookie) -> T) -> T {
        self.change(bookie, |node| look(&mut node.disk))
    }

    /// Stops a bookie, which loses what wasn't synced, or starts it.
    pub fn set_up(&self, bookie: &BookieId, up: bool) {
        self.change(bookie, |node| {
            node.down = !up;
            for (number, ask) in node.disk.crash() {
                if let Some(waiter) = node.waiting.remove(&number) {
                    node.ready.push((waiter, ask.refusal(BookieError::Unreachable)));
                }
            }
        });
    }

    /// A hung bookie takes requests and answers none.
    pub fn set_hung(&self, bookie: &BookieId, hung: bool) {
        self.change(bookie, |node| node.hung = hung);
    }

    /// Ledgers whose deletion was hinted to a bookie.
    #[must_use]
    pub fn hints(&self, bookie: &BookieId) -> Vec<LedgerId> {
        self.change(bookie, |node| node.hints.clone())
    }

    /// How often a bookie was asked which ledgers are fenced.
    #[must_use]
    pub fn probes(&self, bookie: &BookieId) -> usize {
        self.change(bookie, |node| node.probes)
    }

    async fn request(&self, bookie: &BookieId, ask: Ask) -> Answer {
        let refused = ask.refusal(BookieError::Unreachable);
        let (sender, answer) = oneshot::channel();
        self.change(bookie, |node| node.ask(ask, Waiter::Other(sender)));
        answer.await.unwrap_or(refused)
    }
}

impl Shared {
    fn names(&self) -> Vec<BookieId> {
        self.nodes.lock().keys().cloned().collect()
    }

    fn answer(&self, bookie: &BookieId) {
        let ready = self.nodes.lock().get_mut(bookie).map(Node::take_ready).unwrap_or_default();
        let mut row: Option<Arc<dyn AppendSink>> = None;
        for (waiter, answer) in ready {
            match (waiter, answer) {
                (Waiter::Append(sink), Answer::Append(entry, result)) => {
                    if row.as_ref().is_none_or(|open| !Arc::ptr_eq(open, &sink)) {
                        if let Some(over) = row.replace(Arc::clone(&sink)) {
                            over.batch_end();
                        }
                        sink.batch_begin();
                    }
                    sink.append_done(bookie, entry, result);
                }
                // Whoever asked may have gone.
                (Waiter::Other(sender), answer) => drop(sender.send(answer)),
                (Waiter::Append(_), other) => unreachable!("an add is answered with {other:?}"),
            }
        }
        if let Some(over) = row {
            over.batch_end();
        }
    }
}

#[async_trait]
impl BookieTransport for ModelTransport {
    fn append(&self, bookie: &BookieId, request: AppendRequest, sink: &Arc<dyn AppendSink>) {
        let waiter = Waiter::Append(Arc::clone(sink));
        self.change(bookie, |node| node.ask(Ask::Append(request), waiter));
    }

    async fn read(&self, bookie: &BookieId, request: ReadRequest) -> ReadResult {
        match self.request(bookie, Ask::Read(0, request)).await {
            Answer::Read(_, result) => result,
            other => unreachable!("a read is answered with {other:?}"),
        }
    }

    async fn fence(&self, bookie: &BookieId, request: FenceRequest) -> FenceResult {
        match self.request(bookie, Ask::Fence(request)).await {
            Answer::Fence(result) => result,
            other => unreachable!("a fence is answered with {other:?}"),
        }
    }

    async fn fenced(&self, bookie: &BookieId, ledgers: Vec<FenceRequest>) -> FencedResult {
        let (down, hung, answer) = self.change(bookie, |node| {
            node.probes += 1;
            let answer = ledgers.iter().map(|asked| node.disk.is_fenced(asked)).collect();
            (node.down, node.hung, answer)
        });
        if hung {
            std::future::pending::<()>().await;
        }
        if down { Err(BookieError::Unreachable) } else { Ok(answer) }
    }

    async fn delete_hint(
        &self,
        bookie: &BookieId,
        ledgers: Vec<LedgerId>,
    ) -> Result<(), BookieError> {
        self.change(bookie, |node| node.hints.extend(ledgers));
        Ok(())
    }

    async fn info(&self, bookie: &BookieId) -> Result<BookieInfo, BookieError> {
        let (down, hung, ledgers) =
            self.change(bookie, |node| (node.down, node.hung, node.disk.ledgers().count() as u64));
        if hung {
            std::future::pending::<()>().await;
        }
        if down {
            return Err(BookieError::Unreachable);
        }
        Ok(BookieInfo {
            sync_mode: SyncMode::Fdatasync,
            total_bytes: 0,
            free_bytes: 0,
            writable: true,
            ledgers,
            segments: 0,
            lag: Lag::default(),
        })
    }
}
