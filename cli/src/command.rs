//! The commands: each takes its raw flags and the resolved settings, and does its work.

use std::time::Duration;

use geminga_client::{Client, ClientError};

use crate::config::Settings;

pub mod admin;
pub mod bookie;
pub mod broker;
pub mod cluster;
pub mod completions;
pub mod consume;
pub mod perf;
pub mod produce;
pub mod repair;
mod serve;
pub mod standalone;

/// A client of the cluster that the settings name, connected, so that a wrong address is told at
/// once and not after the operation timeout.
async fn connect(settings: &Settings, timeout: Duration) -> Result<Client, ClientError> {
    let client = Client::builder()
        .service_url(&settings.service_url)
        .tenant(&settings.tenant)
        .namespace(&settings.namespace)
        .client_name(concat!("geminga-cli/", env!("CARGO_PKG_VERSION")))
        .operation_timeout(timeout)
        .build()?;
    client.connect().await?;
    Ok(client)
}
