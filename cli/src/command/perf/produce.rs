//! `geminga perf produce`: the time from when a message is due to its receipt.

use std::sync::Arc;

use geminga_proto::env::Env;
use tokio::runtime::Runtime;

use super::load::{Load, describe};
use super::recorder::{Recorder, Window};
use super::report::Report;
use super::{TIMEOUT, durability};
use crate::args::perf::LoadArgs;
use crate::command::connect;
use crate::config::Settings;
use crate::exit::Outcome;

/// Measures publishing.
pub(super) fn run(runtime: &Runtime, args: &LoadArgs, settings: &Settings) -> Outcome {
    let env = Env::system();
    let (client, durability, load) = runtime.block_on(async {
        let client = connect(settings, TIMEOUT).await?;
        let durability = durability(settings).await?;
        let load = Load::open(&client, args, &env, None).await?;
        anyhow::Ok((client, durability, load))
    })?;
    let window = Window::new(args.warmup, args.duration);
    let recorder = Arc::new(Recorder::new(window));
    load.drive(runtime, window, &recorder);
    client.close();
    let report = Report {
        test: "produce",
        latency_of: "intended send time to receipt",
        recorded: recorder.recorded(),
        elapsed: args.duration,
        load: describe(args),
        durability,
    };
    Ok(report.show(args.output)?)
}
