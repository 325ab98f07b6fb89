//! `geminga`: one binary for every server and tool.
//!
//! Three rooms follow each other: `args` (what was typed), `config` (what is meant, resolved with
//! file and environment), `command` (what is done). `compose` builds servers out of the crates.
//!
//! *Architecture invariant:* nothing outside this crate reads the environment, files of settings
//! or flags, and nothing outside it knows both a broker and a bookie.

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

mod args;
mod command;
mod compose;
mod config;
mod exit;
mod http;
mod output;

use args::{Cli, Command};
use config::{AsSettings, Resolved};
use exit::{Exit, Failed, Outcome};

/// Batches of 128 KiB come and go on every thread; the C library's allocator hands such blocks
/// back to the kernel and faults them in again. Without huge pages, which would make an idle server
/// more than twice as large.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => Exit::Done.into(),
        Err(failed) if output::is_closed(&failed.error) => Exit::Done.into(),
        Err(failed) => {
            eprintln!("error: {}", output::with_causes(&failed.error));
            failed.exit.into()
        }
    }
}

fn run(cli: Cli) -> Outcome {
    if let Command::Completions(args) = &cli.command {
        return command::completions::run(args);
    }
    let flags = flags(&cli.command);
    let resolved = config::resolve(&cli.global, &flags, &config::environment())?;
    if cli.global.print_config {
        return Ok(output::line(resolved.print())?);
    }
    let serves = match &cli.command {
        Command::Standalone(_) | Command::Broker(_) | Command::Bookie(_) | Command::Repair(_) => {
            true
        }
        Command::Cluster(_)
        | Command::Produce(_)
        | Command::Consume(_)
        | Command::Perf(_)
        | Command::Admin(_)
        | Command::Completions(_) => false,
    };
    start_logging(&resolved, serves)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = match resolved.settings.worker_threads {
        0 if serves => cores,
        // Tools leave the cores to the server, which often runs beside them.
        0 => cores.min(2),
        threads => usize::from(threads),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(32)
        .thread_name("geminga")
        .enable_all()
        .build()
        .map_err(|error| anyhow::anyhow!("can't start threads: {error}"))?;
    let outcome = dispatch(&runtime, cli.command, &resolved);
    // A blocking read of standard input can't be cut off and must not hold up the end.
    runtime.shutdown_background();
    outcome
}

fn dispatch(runtime: &tokio::runtime::Runtime, command: Command, resolved: &Resolved) -> Outcome {
    let settings = &resolved.settings;
    match command {
        Command::Standalone(args) => runtime.block_on(command::standalone::run(&args, settings)),
        Command::Broker(args) => runtime.block_on(command::broker::run(&args, settings)),
        Command::Bookie(args) => runtime.block_on(command::bookie::run(&args, settings)),
        Command::Repair(args) => runtime.block_on(command::repair::run(&args, settings)),
        Command::Cluster(args) => runtime.block_on(command::cluster::run(&args, settings)),
        Command::Produce(args) => runtime.block_on(command::produce::run(&args, settings)),
        Command::Consume(args) => runtime.block_on(command::consume::run(&args, settings)),
        Command::Perf(perf) => command::perf::run(runtime, &perf, settings),
        Command::Admin(args) => runtime.block_on(command::admin::run(&args, settings)),
        Command::Completions(_) => Ok(()),
    }
}

/// The command's flags that are settings.
fn flags(command: &Command) -> Vec<(&'static str, toml::Value)> {
    use args::perf::PerfCommand;
    match command {
        Command::Standalone(args) => args.as_settings(),
        Command::Broker(args) => args.as_settings(),
        Command::Bookie(args) => args.as_settings(),
        Command::Repair(args) => args.as_settings(),
        Command::Cluster(args) => args.as_settings(),
        Command::Produce(args) => args.client.as_settings(),
        Command::Consume(args) => args.client.as_settings(),
        Command::Admin(args) => args.client.as_settings(),
        Command::Perf(PerfCommand::Produce(args) | PerfCommand::Consume(args)) => {
            args.client.as_settings()
        }
        Command::Perf(PerfCommand::Roundtrip(args)) => args.load.client.as_settings(),
        Command::Perf(PerfCommand::Topics(args)) => args.client.as_settings(),
        Command::Perf(PerfCommand::Bookie(_) | PerfCommand::Reclaim(_) | PerfCommand::Disk(_))
        | Command::Completions(_) => Vec::new(),
    }
}

/// Logs go to standard error; standard output is for results.
fn start_logging(resolved: &Resolved, serves: bool) -> Outcome {
    let filter = match resolved.settings.log.as_str() {
        "auto" if serves => "info",
        "auto" => "warn",
        filter => filter,
    };
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failed::usage(format!("setting log can't be {filter:?}: {error}; try info or debug"))
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    Ok(())
}
