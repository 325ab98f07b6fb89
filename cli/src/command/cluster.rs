//! `geminga cluster`.

use crate::args::cluster::ClusterArgs;
use crate::config::Settings;
use crate::exit::{Failed, Outcome};

/// Waits for the etcd backend.
///
/// # Errors
/// Always, for now.
pub async fn run(_args: &ClusterArgs, _settings: &Settings) -> Outcome {
    Err(Failed::usage("`geminga cluster` is not built yet: it needs the etcd backend"))
}
