//! Breaks a cluster for a while and prints what came of it as JSON; `scripts/chaos` runs it, and
//! says how it is used.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use geminga_tests::chaos::plan::Kind;
use geminga_tests::chaos::{Settings, run};

fn settings() -> anyhow::Result<Settings> {
    let (mut minutes, mut seed) = (5.0_f64, None);
    let (mut faulty_binary, mut impossible) = (None, Vec::new());
    let mut kinds = Kind::ALL.to_vec();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--minutes" => minutes = value.parse().with_context(|| format!("--minutes {value}"))?,
            "--seed" => seed = Some(value.parse().with_context(|| format!("--seed {value}"))?),
            "--only" => kinds = named(&value)?,
            // What `scripts/chaos` has found out of this machine and of the binary.
            "--faulty-binary" => faulty_binary = Some(PathBuf::from(value)),
            "--without-faulty-binary" => {
                let kinds = Kind::OF_FAULTY_DEVICE.map(|kind| (kind.name(), value.clone()));
                impossible.extend(kinds);
            }
            "--without-namespaces" => {
                let why = format!("{value}; relays cut connections instead, for the other faults");
                impossible.push((Kind::Split.name(), why));
            }
            _ => bail!("unknown argument '{arg}'; see scripts/chaos --help"),
        }
    }
    if !(0.1..=1440.0).contains(&minutes) {
        bail!("--minutes is between 0.1 and 1440");
    }
    let seed = seed.unwrap_or_else(|| geminga_tests::seed() % 1_000_000);
    let namespaces = std::env::var_os("CLUSTER_NETWORK").is_some();
    let is_told = |kind: Kind| impossible.iter().any(|(fault, _)| *fault == kind.name());
    if !(namespaces || is_told(Kind::Split))
        || !(faulty_binary.is_some() || is_told(Kind::FailingRead))
    {
        bail!("scripts/chaos says what can't be done here; run that");
    }
    let length = Duration::from_secs_f64(minutes * 60.0);
    Ok(Settings { kinds, namespaces, faulty_binary, impossible, ..Settings::new(seed, length) })
}

/// Kinds by their names, with commas between them.
fn named(list: &str) -> anyhow::Result<Vec<Kind>> {
    let named = |name| Kind::ALL.into_iter().find(|kind| kind.name() == name);
    let known = || Kind::ALL.map(Kind::name).join(", ");
    let find = |name| named(name).with_context(|| format!("{name:?} is none of {}", known()));
    list.split(',').map(find).collect()
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
    let only = if settings.kinds.len() == Kind::ALL.len() {
        String::new()
    } else {
        let names: Vec<&str> = settings.kinds.iter().map(|kind| kind.name()).collect();
        format!(" --only {}", names.join(","))
    };
    let again = format!("scripts/chaos --minutes {minutes} --seed {}{only}", settings.seed);
    eprintln!("chaos: again: {again}");
    let report = run(&settings).await;
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &report.json())?;
    writeln!(out)?;
    eprintln!("chaos: again: {again}");
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
