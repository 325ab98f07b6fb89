//! The task behind a producer or a consumer: it opens the session with the broker, opens it again
//! whenever it is lost, leaves it if another broker has the topic while its own says nothing, and
//! runs what is due. Messages never pass through it.
//!
//! Invariants: there is one attempt at a time; an error that no further attempt can mend ends the
//! endpoint, and everything that waits for it hears that error; attempts come at growing intervals
//! until a session has brought something.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use geminga_proto::env::Monotonic;
use geminga_proto::topic_name::TopicName;
use tokio::sync::{Notify, oneshot};

use crate::backoff::Backoff;
use crate::client::ClientInner;
use crate::error::{ClientError, ErrorCode};
use crate::link::{Link, Protocol};
use crate::lookup::Located;

/// What the task drives.
pub(crate) trait Endpoint: Send + Sync + 'static {
    /// The broker's word for "that name is connected already".
    const BUSY: ErrorCode;

    fn client(&self) -> &Arc<ClientInner>;
    fn topic(&self) -> &TopicName;
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
    /// One attempt at a session with the topic's owner.
    fn open_session(
        self: Arc<Self>,
        at: Located,
    ) -> impl Future<Output = Result<(), ClientError>> + Send;
    /// The session that is open, and where it is.
    fn open_at(&self) -> Option<(u64, Located)>;
    /// Gives a session up, if it still is the one.
    fn give_up(&self, session_id: u64, error: ClientError);
    /// Leaves the session that is being opened, or is open.
    fn leave(&self);
    /// Why the last session ended that was open, once.
    fn take_ended(&self) -> Option<ClientError>;
    /// There is no session, for this reason.
    fn no_session(&self, error: &ClientError);
    /// It is over: leaves the link, tells all who wait.
    fn finish(&self, error: &ClientError);
}

type Opened = oneshot::Sender<Result<(), ClientError>>;

/// A producer's or consumer's place on a link.
pub(crate) enum Session<P: Protocol> {
    None,
    Opening { id: u64, link: Arc<Link<P>>, at: Located, reply: Opened },
    Open { id: u64, link: Arc<Link<P>>, at: Located },
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

    pub(crate) fn is_opening(&self) -> bool {
        matches!(self, Self::Opening { .. })
    }

    pub(crate) fn open_at(&self) -> Option<(u64, Located)> {
        match self {
            Self::Open { id, at, .. } => Some((*id, at.clone())),
            Self::None | Self::Opening { .. } => None,
        }
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

    /// The session is over. Answers why, and where it was, if it was open; else whoever opens it
    /// hears it.
    pub(crate) fn end(
        self,
        close: impl FnOnce(u64) -> P::Frame,
        error: impl FnOnce(&str) -> ClientError,
    ) -> Option<(ClientError, Located)> {
        match self {
            Self::None => None,
            Self::Opening { id, link, at, reply } => {
                link.unregister(id);
                // The session's task may have stopped waiting.
                let _ = reply.send(Err(error(at.connection.url())));
                None
            }
            Self::Open { id, link, at } => {
                link.unregister(id);
                // Tells a broker that is still there not to expect more of this session.
                link.push(close(id));
                Some((error(at.connection.url()), at))
            }
        }
    }
}

/// Waits for the broker's answer to the opening of a session.
pub(crate) async fn opened(
    answer: oneshot::Receiver<Result<(), ClientError>>,
    at: &Located,
    timeout: Duration,
) -> Result<(), ClientError> {
    let lost = |why: String| {
        let url = at.connection.url().to_owned();
        ClientError::Disconnected { url, why }
    };
    match tokio::time::timeout(timeout, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(lost("the attempt was given up".to_owned())),
        Err(_) => Err(lost(format!("no answer within {timeout:?}"))),
    }
}

/// An attempt that brought no session.
struct Failed {
    error: ClientError,
    /// When it began.
    began: Monotonic,
    /// The broker may have been asked and not have answered: it may think that there is a session.
    in_doubt: bool,
}

/// One attempt: finds the topic's owner and opens a session there.
async fn attempt<E: Endpoint>(endpoint: Arc<E>) -> Result<(), Failed> {
    let client = endpoint.client();
    let (directory, began) = (&client.directory, client.env.clock.monotonic());
    let located = directory.locate(endpoint.topic()).await;
    let at = located.map_err(|error| Failed { error, began, in_doubt: false })?;
    let opened = tokio::select! {
        biased;
        opened = Arc::clone(&endpoint).open_session(at.clone()) => opened,
        () = moved_away(&*endpoint, &at) => Err(at.connection.silent()),
    };
    opened.map_err(|error| {
        endpoint.leave();
        directory.failed(&at.owner, &error);
        let in_doubt = matches!(error, ClientError::Disconnected { .. });
        Failed { error, began, in_doubt }
    })
}

/// Counts an endpoint among those that look for a broker.
struct Searching(Arc<ClientInner>);

impl Searching {
    fn new(client: &Arc<ClientInner>) -> Self {
        client.searching.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(client))
    }

    /// How many others there are.
    fn others(&self) -> usize {
        self.0.searching.load(Ordering::Relaxed).saturating_sub(1)
    }
}

impl Drop for Searching {
    fn drop(&mut self) {
        self.0.searching.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits until the broker shows no sign of life and another one serves the topic. That a broker is
/// silent is no reason to leave it: one with too much to do is, too, and leaving makes it more.
async fn moved_away<E: Endpoint>(endpoint: &E, at: &Located) {
    let client = endpoint.client();
    loop {
        at.connection.doubtful().await;
        let searching = Searching::new(client);
        let mut backoff = Backoff::new();
        while at.connection.is_doubtful() {
            let began = client.env.clock.monotonic();
            let other = client.directory.second_opinion(endpoint.topic(), &at.owner).await;
            if let Some(other) = other
                && at.connection.is_doubtful()
            {
                tracing::debug!(
                    of = %endpoint.label(), silent = %at.owner.url, other = %other.url,
                    "another broker serves the topic by now"
                );
                return;
            }
            let wait = backoff.wait(&*client.env.random, searching.others(), false);
            tokio::select! {
                () = at.connection.clear() => {}
                () = client.directory.pause(wait, began) => {}
            }
        }
        if at.connection.is_dead() {
            // Its end ends everything on it.
            return std::future::pending().await;
        }
    }
}

/// Looks after an open session: gives it up if the topic has moved away from a silent broker.
async fn look_after<E: Endpoint>(endpoint: Arc<E>, session_id: u64, at: Located) {
    moved_away(&*endpoint, &at).await;
    endpoint.give_up(session_id, at.connection.silent());
}

type Attempt = Pin<Box<dyn Future<Output = Result<(), Failed>> + Send>>;
type LookingAfter = Pin<Box<dyn Future<Output = ()> + Send>>;

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
    /// There from the first attempt until a session is open.
    searching: Option<Searching>,
    /// Looks after the open session.
    looking_after: Option<LookingAfter>,
    /// Hears of the first session; gone afterwards.
    opened: Option<Opened>,
    last_error: Option<ClientError>,
    /// A broker may think that there is a session, from an attempt that it didn't answer.
    in_doubt: bool,
    /// When the last session was opened.
    opened_at: Option<Monotonic>,
    /// When the last attempt began, if it has failed.
    failed: Option<Monotonic>,
    /// Since when each attempt was answered so.
    busy_since: Option<Monotonic>,
}

async fn after(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// The result of what there may be; for ever pending if there is nothing.
async fn of<T>(pending: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match pending {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn run<E: Endpoint>(endpoint: Arc<E>, opened: Opened) {
    let mut driver = Driver {
        attempt: Some(Box::pin(attempt(Arc::clone(&endpoint)))),
        searching: Some(Searching::new(endpoint.client())),
        looking_after: None,
        endpoint: Arc::clone(&endpoint),
        backoff: Backoff::new(),
        opened: Some(opened),
        last_error: None,
        in_doubt: false,
        opened_at: None,
        failed: None,
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
        tokio::select! {
            result = of(&mut driver.attempt) => {
                driver.attempt = None;
                if let Err(error) = driver.attempted(result) {
                    break error;
                }
            }
            () = of(&mut driver.looking_after) => driver.looking_after = None,
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
    driver.looking_after = None;
    endpoint.finish(&end);
    if let Some(opened) = driver.opened {
        // The builder's future may have been dropped; then nobody asks.
        let _ = opened.send(Err(end));
    }
}

impl<E: Endpoint> Driver<E> {
    /// Starts an attempt if there is neither a session nor one under way.
    fn reconnect_if_lost(&mut self) {
        if self.attempt.is_some() || !self.endpoint.needs_session() {
            return;
        }
        self.looking_after = None;
        let client = self.endpoint.client();
        let now = client.env.clock.monotonic();
        let lasted = self.opened_at.take().map(|at| now.saturating_sub(at));
        // A session without traffic counts if it has outlived the longest wait.
        if self.endpoint.take_progress() || lasted.is_some_and(|it| it >= Backoff::LONGEST) {
            self.backoff.reset();
        }
        let ended = self.endpoint.take_ended();
        let orderly = ended.as_ref().is_some_and(ClientError::is_orderly);
        let searching = self.searching.get_or_insert_with(|| Searching::new(client));
        let wait = self.backoff.wait(&*client.env.random, searching.others(), orderly);
        let since = self.failed.take().unwrap_or(now);
        let endpoint = Arc::clone(&self.endpoint);
        self.attempt = Some(Box::pin(async move {
            endpoint.client().directory.pause(wait, since).await;
            attempt(endpoint).await
        }));
    }

    /// To be asked at each busy answer. True if there was no other for the operation timeout.
    fn is_busy_for_long(&mut self) -> bool {
        let client = self.endpoint.client();
        let now = client.env.clock.monotonic();
        let since = *self.busy_since.get_or_insert(now);
        now.saturating_sub(since) >= client.operation_timeout
    }

    /// There is a session.
    fn opened(&mut self) {
        self.busy_since = None;
        self.in_doubt = false;
        self.searching = None;
        self.opened_at = Some(self.endpoint.client().env.clock.monotonic());
        self.looking_after = self.endpoint.open_at().map(|(id, at)| {
            let looking_after = look_after(Arc::clone(&self.endpoint), id, at);
            Box::pin(looking_after) as LookingAfter
        });
        if let Some(opened) = self.opened.take() {
            // The builder's future may be gone; its handle's drop then closes.
            let _ = opened.send(Ok(()));
        }
    }

    /// An attempt is over. Fails with an error that no further attempt can mend.
    fn attempted(&mut self, result: Result<(), Failed>) -> Result<(), ClientError> {
        let Err(Failed { error, began, in_doubt }) = result else {
            self.opened();
            return Ok(());
        };
        self.failed = Some(began);
        let first = self.opened.is_some();
        let busy = error.code() == Some(E::BUSY);
        if !busy {
            self.busy_since = None;
        }
        self.in_doubt |= in_doubt;
        // A name that is taken when first used is taken, unless an attempt of ours may have taken
        // it; later it is our own old session, which the broker has yet to miss, or, if that was
        // left, somebody else's. And what was a broker once will be one again.
        let hopeless = if first {
            !error.is_retryable() || (busy && !self.in_doubt)
        } else if busy && self.endpoint.has_left_its_place() && self.is_busy_for_long() {
            true
        } else {
            !error.can_pass()
        };
        if hopeless {
            return Err(error);
        }
        tracing::debug!(of = %self.endpoint.label(), %error, "no session yet; trying again");
        self.endpoint.no_session(&error);
        self.last_error = Some(error);
        Ok(())
    }
}
