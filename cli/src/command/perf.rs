//! `geminga perf`: load and its measurement.
//!
//! The load is open: message n of a rate is due at start + n / rate, whatever became of the ones
//! before, and its latency counts from then. Without a rate a message is due when the producer is
//! asked to take it. What was due within the window counts, also if it was answered later;
//! throughput is what was answered within the window.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::args::perf::PerfCommand;
use crate::config::Settings;
use crate::exit::Outcome;
use crate::http::AdminApi;

mod consume;
mod disk;
mod load;
mod payload;
mod produce;
mod reclaim;
mod recorder;
mod report;
mod roundtrip;
mod storage;
mod topics;

/// Limit of opening producers and consumers, and of a message's receipt.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Measures what the arguments say.
///
/// # Errors
/// The measurement couldn't be made, or some of its messages failed.
pub fn run(runtime: &Runtime, command: &PerfCommand, settings: &Settings) -> Outcome {
    match command {
        PerfCommand::Produce(args) => produce::run(runtime, args, settings),
        PerfCommand::Consume(args) => runtime.block_on(consume::run(args, settings)),
        PerfCommand::Roundtrip(args) => roundtrip::run(runtime, args, settings),
        PerfCommand::Topics(args) => runtime.block_on(topics::run(args, settings)),
        PerfCommand::Bookie(args) => storage::run(runtime, args),
        PerfCommand::Reclaim(args) => reclaim::run(runtime, args),
        PerfCommand::Disk(args) => disk::run(args),
    }
}

/// The durability settings that are in force at the server, as it says itself. A figure without
/// them says nothing, so a server that doesn't tell is an error.
async fn durability(settings: &Settings) -> anyhow::Result<Value> {
    let said = AdminApi::new(&settings.admin_url)?.get("/admin/v2/geminga/durability").await?;
    Ok(json!({
        "write_quorum": said["write_quorum"],
        "ack_quorum": said["ack_quorum"],
        "sync_mode": said["sync_mode"],
        "release": said["release"],
    }))
}
