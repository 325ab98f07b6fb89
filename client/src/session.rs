//! The task behind a producer or a consumer: it opens the session with the broker, opens it again
//! whenever it is lost, and runs what is due. Messages never pass through it.
//!
//! Invariants: there is one attempt at a time; an error that no further attempt can mend ends the
//! endpoint, and everything that waits for it hears that error; attempts come at growing intervals
//! until a session has brought something.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use geminga_proto::env::Monotonic;
use tokio::sync::{Notify, oneshot};

use crate::backoff::Backoff;
use crate::client::ClientInner;
use crate::connection::Connection;
use crate::error::{ClientError, ErrorCode};
use crate::link::{Link, Protocol};

/// What the task drives.
pub(crate) trait Endpoint: Send + Sync + 'static {
    /// The broker's word for "that name is connected already".
    const BUSY: ErrorCode;

    fn client(&self) -> &Arc<ClientInner>;
    /// What logs call it.
    fn label(&self) -> String;
    /// Wakes the task.
    fn wake(&self) -> &Notify;
    /// Does what is due; answers when the next thing is.
    fn on_timer(&self) -> Option<Duration>;
    /// Why it is over, if it is: [`ClientError::Closed`] if it was closed and is done.
    fn over(&self) -> Option<ClientError>;
    /// True if it left its last session of its own accord: somebody else may have its place.
    fn has_left_its_place(&self) -> bool {
        false
    }
    /// True if it was asked to close.
    fn is_closing(&self) -> bool;
    /// True if it has no session and wants one.
    fn needs_session(&self) -> bool;
    /// True if the broker has done something for it since this was last asked: a session that was
    /// merely opened may end for the same reason as the one before it.
    fn take_progress(&self) -> bool;
    /// One attempt at a session.
    fn open_session(self: Arc<Self>) -> impl Future<Output = Result<(), ClientError>> + Send;
    /// It is over: leaves the link, tells all who wait.
    fn finish(&self, error: &ClientError);
}

type Opened = oneshot::Sender<Result<(), ClientError>>;

/// A producer's or consumer's place on a link.
pub(crate) enum Session<P: Protocol> {
    None,
    Opening { id: u64, link: Arc<Link<P>>, connection: Arc<Connection>, reply: Opened },
    Open { id: u64, link: Arc<Link<P>>, connection: Arc<Connection> },
}

impl<P: Protocol> Session<P> {
    pub(crate) fn id(&self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Opening { id, .. } | Self::Open { id, .. } => Some(*id),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }

    /// Sends a frame if the session is open.
    pub(crate) fn push(&self, frame: impl FnOnce(u64) -> P::Frame) -> bool {
        match self {
            Self::Open { id, link, .. } => {
                link.push(frame(*id));
                true
            }
            Self::None | Self::Opening { .. } => false,
        }
    }

    /// Leaves the link of one's own accord; the broker is told.
    pub(crate) fn leave(self, close: impl FnOnce(u64) -> P::Frame) {
        match self {
            Self::None => {}
            Self::Opening { id, link, .. } | Self::Open { id, link, .. } => {
                link.unregister(id);
                link.push(close(id));
            }
        }
    }

    /// The session is over. Answers why if it was open; else whoever opens it hears it.
    pub(crate) fn end(
        self,
        close: impl FnOnce(u64) -> P::Frame,
        error: impl FnOnce(&str) -> ClientError,
    ) -> Option<ClientError> {
        match self {
            Self::None => None,
            Self::Opening { id, link, connection, reply } => {
                link.unregister(id);
                // The session's task may have stopped waiting.
                let _ = reply.send(Err(error(connection.url())));
                None
            }
            Self::Open { id, link, connection } => {
                link.unregister(id);
                // Tells a broker that is still there not to expect more of this session.
                link.push(close(id));
                Some(error(connection.url()))
            }
        }
    }
}

/// Waits for the broker's answer to the opening of a session; gives it up with `leave`.
pub(crate) async fn opened(
    answer: oneshot::Receiver<Result<(), ClientError>>,
    url: String,
    timeout: Duration,
    leave: impl FnOnce(),
) -> Result<(), ClientError> {
    match tokio::time::timeout(timeout, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => {
            let why = "the attempt was given up".to_owned();
            Err(ClientError::Disconnected { url, why })
        }
        Err(_) => {
            leave();
            let why = format!("no answer within {timeout:?}");
            Err(ClientError::Disconnected { url, why })
        }
    }
}
type Attempt = Pin<Box<dyn Future<Output = Result<(), ClientError>> + Send>>;

/// Starts the task and waits for the first session.
pub(crate) async fn start<E: Endpoint>(endpoint: Arc<E>) -> Result<(), ClientError> {
    let (opened, answer) = oneshot::channel();
    tokio::spawn(run(endpoint, opened));
    answer.await.unwrap_or(Err(ClientError::Closed))
}

struct Driver<E> {
    endpoint: Arc<E>,
    backoff: Backoff,
    attempt: Option<Attempt>,
    /// Hears of the first session; gone afterwards.
    opened: Option<Opened>,
    last_error: Option<ClientError>,
    /// When the last session was opened.
    opened_at: Option<Monotonic>,
    /// Since when each attempt was answered so.
    busy_since: Option<Monotonic>,
}

async fn after(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

async fn run<E: Endpoint>(endpoint: Arc<E>, opened: Opened) {
    let mut driver = Driver {
        attempt: Some(Box::pin(Arc::clone(&endpoint).open_session())),
        endpoint: Arc::clone(&endpoint),
        backoff: Backoff::new(),
        opened: Some(opened),
        last_error: None,
        opened_at: None,
        busy_since: None,
    };
    let operation_timeout = endpoint.client().operation_timeout;
    let first_deadline = tokio::time::Instant::now() + operation_timeout;
    let end = loop {
        let next = endpoint.on_timer();
        if let Some(end) = endpoint.over() {
            break end;
        }
        if driver.opened.is_some() && endpoint.is_closing() {
            break ClientError::Closed;
        }
        driver.reconnect_if_lost();
        let opening = driver.opened.is_some();
        let attempt = async {
            match &mut driver.attempt {
                Some(attempt) => attempt.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = attempt => {
                driver.attempt = None;
                if let Err(error) = driver.attempted(result) {
                    break error;
                }
            }
            () = after(next) => {}
            () = endpoint.wake().notified() => {}
            () = tokio::time::sleep_until(first_deadline), if opening => {
                let last = driver.last_error.as_ref();
                let last = last.map_or_else(|| "no answer".to_owned(), ToString::to_string);
                break ClientError::TimedOut { after: operation_timeout, last };
            }
        }
    };
    driver.attempt = None;
    endpoint.finish(&end);
    if let Some(opened) = driver.opened {
        // The builder's future may have been dropped; then nobody asks.
        let _ = opened.send(Err(end));
    }
}

impl<E: Endpoint> Driver<E> {
    /// Starts an attempt if there is neither a session nor one under way.
    fn reconnect_if_lost(&mut self) {
        if self.attempt.is_none() && self.endpoint.needs_session() {
            let now = self.endpoint.client().env.clock.monotonic();
            let lasted = self.opened_at.take().map(|at| now.saturating_sub(at));
            // A session without traffic counts if it has outlived the longest wait.
            if self.endpoint.take_progress() || lasted.is_some_and(|it| it >= Backoff::LONGEST) {
                self.backoff.reset();
            }
            let wait = self.backoff.wait(&*self.endpoint.client().env.random);
            let endpoint = Arc::clone(&self.endpoint);
            self.attempt = Some(Box::pin(async move {
                tokio::time::sleep(wait).await;
                endpoint.open_session().await
            }));
        }
    }

    /// To be asked at each busy answer. True if there was no other for the operation timeout.
    fn is_busy_for_long(&mut self) -> bool {
        let client = self.endpoint.client();
        let now = client.env.clock.monotonic();
        let since = *self.busy_since.get_or_insert(now);
        now.saturating_sub(since) >= client.operation_timeout
    }

    /// An attempt is over. Fails with an error that no further attempt can mend.
    fn attempted(&mut self, result: Result<(), ClientError>) -> Result<(), ClientError> {
        let Err(error) = result else {
            self.busy_since = None;
            self.opened_at = Some(self.endpoint.client().env.clock.monotonic());
            if let Some(opened) = self.opened.take() {
                // The builder's future may be gone; its handle's drop then closes.
                let _ = opened.send(Ok(()));
            }
            return Ok(());
        };
        let first = self.opened.is_some();
        let busy = error.code() == Some(E::BUSY);
        if !busy {
            self.busy_since = None;
        }
        // A name that is taken when first used is taken; later it is our own old session, which
        // the broker has yet to miss, or, if that was left, somebody else's. And what was a broker
        // once will be one again.
        let hopeless = if first {
            !error.is_retryable() || busy
        } else if busy && self.endpoint.has_left_its_place() && self.is_busy_for_long() {
            true
        } else {
            !error.is_retryable() && !matches!(error, ClientError::NotABroker { .. })
        };
        if hopeless {
            return Err(error);
        }
        tracing::debug!(of = %self.endpoint.label(), %error, "no session yet; trying again");
        self.last_error = Some(error);
        Ok(())
    }
}
