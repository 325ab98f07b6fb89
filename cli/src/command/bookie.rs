//! `geminga bookie`: runs a storage node of a cluster until a signal.

use crate::args::cluster::BookieArgs;
use crate::command::serve;
use crate::compose::bookie::BookieServer;
use crate::config::Settings;
use crate::exit::Outcome;

/// Serves until SIGTERM or Ctrl-C.
///
/// # Errors
/// It can't start, broke down, or didn't close cleanly.
pub async fn run(args: &BookieArgs, settings: &Settings) -> Outcome {
    serve::run(args.node.ready_file.as_deref(), BookieServer::start(settings)).await
}
