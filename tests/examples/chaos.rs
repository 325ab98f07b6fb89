//! Breaks a cluster for a while and prints what came of it as JSON; `scripts/chaos` runs it, and
//! says how it is used.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use geminga_tests::chaos::{Settings, run};

fn settings() -> anyhow::Result<Settings> {
    let (mut minutes, mut seed) = (5.0_f64, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg} needs a number"))?;
        match arg.as_str() {
            "--minutes" => minutes = value.parse().with_context(|| format!("--minutes {value}"))?,
            "--seed" => seed = Some(value.parse().with_context(|| format!("--seed {value}"))?),
            _ => bail!("unknown argument '{arg}'; see scripts/chaos --help"),
        }
    }
    if !(0.1..=1440.0).contains(&minutes) {
        bail!("--minutes is between 0.1 and 1440");
    }
    let seed = seed.unwrap_or_else(|| geminga_tests::seed() % 1_000_000);
    Ok(Settings::new(seed, Duration::from_secs_f64(minutes * 60.0)))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<ExitCode> {
    let settings = match settings() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("scripts/chaos: {error:#}");
            return Ok(ExitCode::from(2));
        }
    };
    let minutes = settings.length.as_secs_f64() / 60.0;
    eprintln!("chaos: again: scripts/chaos --minutes {minutes} --seed {}", settings.seed);
    let report = run(&settings).await;
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &report.json())?;
    writeln!(out)?;
    eprintln!("chaos: again: scripts/chaos --minutes {minutes} --seed {}", settings.seed);
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
