//! [`Faults`]: what goes wrong with the requests to a [`super::MemoryStore`].

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;

use crate::store::{StoreError, Txn};

/// What becomes of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fault {
    /// It is done and answered.
    #[default]
    None,
    /// It is certainly not done, and its sender hears so: [`StoreError::Unavailable`].
    Unavailable,
    /// A write that is certainly not done for want of room: [`StoreError::Full`].
    Full,
    /// It is not done, and its sender can't know: [`StoreError::Unknown`].
    RequestLost,
    /// It is done, and its sender can't know: [`StoreError::Unknown`].
    AnswerLost,
    /// It is not done and never answered.
    Silence,
}

/// A request, as a script sees it.
#[derive(Debug, Clone, Copy)]
pub enum Request<'a> {
    /// Reads a key.
    Get(&'a str),
    /// Reads a prefix.
    Range(&'a str),
    /// A transaction.
    Txn(&'a Txn),
    /// Starts a watch of a prefix.
    Watch(&'a str),
    /// Grants, keeps or ends a lease.
    Lease,
}

type Script = Box<dyn FnMut(Request<'_>) -> Fault + Send>;

#[derive(Default)]
struct Plan {
    delay: Duration,
    down: bool,
    next_txns: VecDeque<Fault>,
    script: Option<Script>,
}

/// The faults of one store; none at first.
#[derive(Default)]
pub struct Faults {
    plan: Mutex<Plan>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.plan.lock();
        out.debug_struct("Faults")
            .field("delay", &plan.delay)
            .field("down", &plan.down)
            .field("next_txns", &plan.next_txns)
            .field("scripted", &plan.script.is_some())
            .finish()
    }
}

impl Faults {
    /// Every request waits so long, in tokio's time, before it is done.
    pub fn set_delay(&self, delay: Duration) {
        self.plan.lock().delay = delay;
    }

    /// While down, every request fails with [`StoreError::Unavailable`].
    pub fn set_down(&self, down: bool) {
        self.plan.lock().down = down;
    }

    /// Sets what becomes of the next transactions, behind those set before.
    pub fn next_txns(&self, faults: impl IntoIterator<Item = Fault>) {
        self.plan.lock().next_txns.extend(faults);
    }

    /// Asks `script` about each request that nothing else decides.
    pub fn set_script(&self, script: impl FnMut(Request<'_>) -> Fault + Send + 'static) {
        self.plan.lock().script = Some(Box::new(script));
    }

    /// Nothing goes wrong from now on.
    pub fn clear(&self) {
        *self.plan.lock() = Plan::default();
    }

    async fn decide(&self, request: Request<'_>) -> Fault {
        let (fault, delay) = {
            let mut plan = self.plan.lock();
            let planned = match request {
                Request::Txn(_) => plan.next_txns.pop_front(),
                _ => None,
            };
            let fault = if plan.down {
                Fault::Unavailable
            } else if let Some(fault) = planned {
                fault
            } else {
                plan.script.as_mut().map_or(Fault::None, |script| script(request))
            };
            (fault, plan.delay)
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if fault == Fault::Silence {
            std::future::pending::<()>().await;
        }
        fault
    }

    /// Reads have no outcome that could be unknown: whatever is lost, they are unavailable.
    pub(super) async fn read(&self, request: Request<'_>) -> Result<(), StoreError> {
        match self.decide(request).await {
            Fault::None => Ok(()),
            _ => Err(unavailable()),
        }
    }

    /// Does `write`, or not, and answers, or not.
    pub(super) async fn write<T>(
        &self,
        request: Request<'_>,
        write: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match self.decide(request).await {
            Fault::None => write(),
            Fault::Unavailable | Fault::Silence => Err(unavailable()),
            Fault::Full => Err(StoreError::Full("an injected fault".to_owned())),
            Fault::RequestLost => Err(StoreError::Unknown("the request was lost".to_owned())),
            Fault::AnswerLost => {
                // Whatever the answer was, its sender doesn't get it.
                drop(write());
                Err(StoreError::Unknown("the answer was lost".to_owned()))
            }
        }
    }
}

fn unavailable() -> StoreError {
    StoreError::Unavailable("an injected fault".to_owned())
}
