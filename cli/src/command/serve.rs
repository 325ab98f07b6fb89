//! Runs a server until a signal: ready file, limits, and the order of start and end, the same for
//! every server.

use std::future::Future;
use std::path::Path;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::compose::ready_file;
use crate::compose::server::Server;
use crate::exit::{Failed, Outcome};

/// Serves until SIGTERM or Ctrl-C. A signal while it starts ends it at once, and so does a second
/// one while it closes.
///
/// # Errors
/// It can't start, broke down, or didn't close cleanly.
pub async fn run<S: Server>(
    ready: Option<&Path>,
    start: impl Future<Output = anyhow::Result<S>>,
) -> Outcome {
    let mut signals = Signals::new()?;
    if let Some(path) = ready {
        ready_file::clear(path)?;
    }
    raise_file_limit();
    let mut server = tokio::select! {
        started = start => started?,
        name = signals.next() => {
            return Err(Failed::interrupted(format!("{name} while starting")));
        }
    };
    server.set_ready();
    if let Some(path) = ready {
        ready_file::write(path, server.addresses())?;
    }
    let ended = tokio::select! {
        name = signals.next() => {
            tracing::info!("{name}: closing");
            Ok(())
        }
        error = server.broken() => Err(error),
    };
    let closed = tokio::select! {
        closed = server.close() => closed,
        name = signals.next() => {
            let error = format!("a second signal ({name}) came while closing; what was not \
                                 closed is recovered later");
            return Err(Failed::interrupted(error));
        }
    };
    ended?;
    closed?;
    tracing::info!("closed");
    Ok(())
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

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
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
