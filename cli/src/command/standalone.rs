//! `geminga standalone`: runs a whole cluster in this process until a signal.

use crate::args::standalone::StandaloneArgs;
use crate::command::serve;
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
    serve::run(args.ready_file.as_deref(), Standalone::start(settings)).await
}
