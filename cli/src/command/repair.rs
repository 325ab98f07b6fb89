//! `geminga repair`: runs a process that replaces lost copies until a signal.

use crate::args::cluster::RepairArgs;
use crate::command::serve;
use crate::compose::repair::RepairServer;
use crate::config::Settings;
use crate::exit::Outcome;

/// Works until SIGTERM or Ctrl-C.
///
/// # Errors
/// It can't start or broke down.
pub async fn run(args: &RepairArgs, settings: &Settings) -> Outcome {
    serve::run(args.ready_file.as_deref(), RepairServer::start(settings)).await
}
