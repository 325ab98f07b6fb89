//! `geminga bookie`.

use crate::args::cluster::BookieArgs;
use crate::config::Settings;
use crate::exit::{Failed, Outcome};

/// Waits for the etcd backend.
///
/// # Errors
/// Always, for now.
pub async fn run(_args: &BookieArgs, _settings: &Settings) -> Outcome {
    Err(Failed::usage("`geminga bookie` is not built yet: it needs the etcd backend"))
}
