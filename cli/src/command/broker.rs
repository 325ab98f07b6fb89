//! `geminga broker`: runs a broker of a cluster until a signal.

use crate::args::cluster::BrokerArgs;
use crate::command::serve;
use crate::compose::broker::BrokerServer;
use crate::config::Settings;
use crate::exit::Outcome;

/// Serves until SIGTERM or Ctrl-C.
///
/// # Errors
/// It can't start, broke down, or didn't close cleanly.
pub async fn run(args: &BrokerArgs, settings: &Settings) -> Outcome {
    serve::run(args.node.ready_file.as_deref(), BrokerServer::start(settings)).await
}
