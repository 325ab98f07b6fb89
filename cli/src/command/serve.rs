//! Runs a server until a signal: ready file, limits, and the order of start and end, the same for
//! every server.

use std::future::Future;
use std::path::Path;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::compose::ready_file;
use crate::compose::server::Server;
use crate::exit::{Failed, Outcome};

/// Serves until SIGTERM or Ctrl-C. A signal ends a start too, and in order as soon as anything
/// serves; a second one ends the process while it closes.
///
/// # Errors
/// It can't start, broke down, or didn't close cleanly.
pub async fn run<S: Server>(
    ready: Option<&Path>,
    start: impl Future<Output = anyhow::Result<S>>,
) -> Outcome {
    let mut signals = Signals::new()?;
    raise_file_limit();
    run_until(&mut signals, ready, start).await
}

async fn run_until<S: Server>(
    signals: &mut impl Told,
    ready: Option<&Path>,
    start: impl Future<Output = anyhow::Result<S>>,
) -> Outcome {
    if let Some(path) = ready {
        ready_file::clear(path)?;
    }
    let mut server = tokio::select! {
        started = start => started?,
        told = signals.next() => {
            tracing::info!("{} while starting: ended", told.name());
            return Ok(());
        }
    };
    let ended = tokio::select! {
        told = signals.next() => {
            tracing::info!("{}: closing", told.name());
            Ok(())
        }
        error = serve(&mut server, ready) => Err(error),
    };
    let closed = tokio::select! {
        closed = server.close() => closed,
        told = signals.next() => return Err(told.cut_short()),
    };
    if let (Err(_), Err(error)) = (&ended, &closed) {
        // The process ends with what broke it; this came on top.
        tracing::error!(error = format!("{error:#}"), "the server did not close cleanly");
    }
    ended?;
    closed?;
    tracing::info!("closed");
    Ok(())
}

/// Serves until that can't go on, and says why.
async fn serve<S: Server>(server: &mut S, ready: Option<&Path>) -> anyhow::Error {
    if let Err(error) = server.join().await {
        return error;
    }
    server.set_ready();
    if let Some(path) = ready
        && let Err(error) = ready_file::write(path, server.addresses())
    {
        return error;
    }
    server.broken().await
}

/// A signal that asks for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Terminate,
    Interrupt,
}

impl Ask {
    fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        }
    }

    /// It came while the server was closing.
    fn cut_short(self) -> Failed {
        let error = format!(
            "a second signal ({}) came while closing; what was not closed is recovered later",
            self.name()
        );
        match self {
            Self::Terminate => Failed::terminated(error),
            Self::Interrupt => Failed::interrupted(error),
        }
    }
}

/// Where signals come from.
trait Told {
    /// The next one.
    async fn next(&mut self) -> Ask;
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("can't listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }
}

impl Told for Signals {
    async fn next(&mut self) -> Ask {
        tokio::select! {
            _ = self.terminate.recv() => Ask::Terminate,
            _ = self.interrupt.recv() => Ask::Interrupt,
        }
    }
}

/// Each connection and each segment takes a file; the usual soft limit of 1,024 is meant for
/// programs that use `select`.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::info!(%error, "the limit of open files can't be raised");
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::compose::ready_file::Addresses;
    use crate::exit::Exit;

    impl Told for Receiver<Ask> {
        async fn next(&mut self) -> Ask {
            match self.recv().await {
                Some(ask) => ask,
                None => pending().await,
            }
        }
    }

    /// What a server was told to do, in order.
    type Steps = Arc<Mutex<Vec<&'static str>>>;

    /// Hangs or fails where a test wants it to.
    #[derive(Default)]
    struct Sham {
        addresses: Addresses,
        steps: Steps,
        joins: Option<anyhow::Result<()>>,
        closes_never: bool,
        /// Gets a signal once it closes.
        at_close: Option<Sender<Ask>>,
    }

    impl Sham {
        fn joining(steps: &Steps) -> Self {
            Self { steps: Arc::clone(steps), joins: Some(Ok(())), ..Self::default() }
        }
    }

    impl Server for Sham {
        fn addresses(&self) -> &Addresses {
            &self.addresses
        }

        async fn join(&mut self) -> anyhow::Result<()> {
            self.steps.lock().push("join");
            match self.joins.take() {
                Some(joined) => joined,
                None => pending().await,
            }
        }

        fn set_ready(&self) {
            self.steps.lock().push("ready");
        }

        async fn broken(&mut self) -> anyhow::Error {
            pending().await
        }

        async fn close(self) -> anyhow::Result<()> {
            self.steps.lock().push("close");
            if let Some(signals) = self.at_close {
                signals.send(Ask::Terminate).await.expect("somebody listens");
            }
            if self.closes_never { pending().await } else { Ok(()) }
        }
    }

    #[tokio::test]
    async fn a_server_whose_ready_file_can_not_be_written_is_closed_before_the_error() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = home.path().join("no/such/dir");
        let (steps, (_sender, mut signals)) = (Steps::default(), channel(4));
        let server = Sham::joining(&steps);
        let failed = run_until(&mut signals, Some(&path), ready(Ok(server))).await;
        let failed = failed.expect_err("there is no such directory");
        assert_eq!(failed.exit, Exit::Failure);
        assert!(failed.error.to_string().contains("ready file"), "{}", failed.error);
        assert_eq!(*steps.lock(), ["join", "ready", "close"]);
    }

    #[tokio::test]
    async fn a_server_that_can_not_join_is_closed_before_the_error() {
        let (steps, (_sender, mut signals)) = (Steps::default(), channel(4));
        let joins = Some(Err(anyhow::anyhow!("the name is taken")));
        let server = Sham { joins, ..Sham::joining(&steps) };
        let failed = run_until(&mut signals, None, ready(Ok(server))).await.expect_err("refused");
        assert_eq!(failed.error.to_string(), "the name is taken");
        assert_eq!(*steps.lock(), ["join", "close"]);
    }

    #[tokio::test]
    async fn a_signal_is_an_orderly_end_also_while_starting_or_joining() {
        for ask in [Ask::Terminate, Ask::Interrupt] {
            let (sender, mut signals) = channel(4);
            sender.send(ask).await.expect("taken");
            let never = pending::<anyhow::Result<Sham>>();
            run_until(&mut signals, None, never).await.expect("it is the end that was asked for");

            let steps = Steps::default();
            let server = Sham { joins: None, ..Sham::joining(&steps) };
            let start = async {
                sender.send(ask).await.expect("taken");
                Ok(server)
            };
            run_until(&mut signals, None, start).await.expect("so is this");
            assert_eq!(steps.lock().last(), Some(&"close"), "what serves is closed");
            assert!(!steps.lock().contains(&"ready"));
        }
    }

    #[tokio::test]
    async fn a_second_signal_cuts_the_closing_short_with_a_code_of_its_own() {
        let (steps, (sender, mut signals)) = (Steps::default(), channel(4));
        let at_close = Some(sender.clone());
        let server = Sham { closes_never: true, at_close, ..Sham::joining(&steps) };
        let start = async {
            sender.send(Ask::Terminate).await.expect("taken");
            Ok(server)
        };
        let failed = run_until(&mut signals, None, start).await.expect_err("it was not closed");
        assert_eq!(failed.exit, Exit::Terminated);
        assert!(failed.error.to_string().contains("SIGTERM"), "{}", failed.error);
    }
}
