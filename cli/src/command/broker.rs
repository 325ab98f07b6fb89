//! `geminga broker`.

use crate::args::cluster::BrokerArgs;
use crate::config::Settings;
use crate::exit::{Failed, Outcome};

/// Waits for the etcd backend.
///
/// # Errors
/// Always, for now.
pub async fn run(_args: &BrokerArgs, _settings: &Settings) -> Outcome {
    Err(Failed::usage("`geminga broker` is not built yet: it needs the etcd backend"))
}
