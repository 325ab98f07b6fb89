//! `geminga standalone`: runs the composed servers until a signal.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::standalone::StandaloneArgs;
use crate::compose::ready_file;
use crate::compose::standalone::Standalone;
use crate::config::Settings;
use crate::exit::{Failed, Outcome};

/// Serves until SIGTERM or Ctrl-C.
///
/// # Errors
/// It can't start, broke down, or didn't close cleanly.
pub async fn run(args: &StandaloneArgs, settings: &Settings) -> Outcome {
    match args.pulsar_port {
        None => {}
        Some(0) => tracing::info!("Pulsar's protocol isn't built yet: no port is opened for it"),
        Some(port) => {
            return Err(Failed::usage(format!(
                "--pulsar-port {port}: Pulsar's binary protocol isn't built yet, so no port can \
                 be opened for it; leave the flag out"
            )));
        }
    }
    let mut signals = Signals::new()?;
    if let Some(path) = &args.ready_file {
        ready_file::clear(path)?;
    }
    raise_file_limit();
    let mut standalone = tokio::select! {
        started = Standalone::start(settings) => started?,
        name = signals.next() => {
            return Err(Failed::interrupted(format!("{name} while starting")));
        }
    };
    standalone.set_ready();
    let addresses = standalone.addresses.clone();
    if let Some(path) = &args.ready_file {
        ready_file::write(path, &addresses)?;
    }
    tracing::info!(
        grpc = addresses.grpc,
        admin = addresses.admin,
        bookie = addresses.bookie,
        sync_mode = standalone.sync_mode(),
        data_dir = %settings.data_dir.display(),
        "geminga standalone serves"
    );
    let ended = tokio::select! {
        name = signals.next() => {
            tracing::info!("{name}: closing");
            Ok(())
        }
        error = standalone.broken() => Err(error),
    };
    let closed = tokio::select! {
        closed = standalone.close() => closed,
        name = signals.next() => {
            let error = format!("a second signal ({name}) came while closing; the next start \
                                 replays the log");
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
