//! Runs the simulation for many seeds, or shows which planted defects it catches.
//!
//! `cargo run -p geminga-ledger --example simulate -- --seeds 10000 [--from N] [--theme NAME]`
//! `cargo run -p geminga-ledger --example simulate -- --seeds 10000 --mutants`
//! `cargo run -p geminga-ledger --example simulate -- --trace SEED [--mutant NAME]`
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::process::ExitCode;

use geminga_ledger::harness::mutant::Mutant;
use geminga_ledger::harness::theme::Theme;
use geminga_ledger::harness::{Caught, Run, catch, run};

struct Arguments {
    from: u64,
    seeds: u64,
    mutants: bool,
    trace: Option<u64>,
    only: Option<String>,
    theme: Option<Theme>,
}

fn arguments() -> Result<Arguments, String> {
    let (mutants, trace, only, theme) = (false, None, None, None);
    let mut found = Arguments { from: 0, seeds: 1_000, mutants, trace, only, theme };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut text = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: Result<String, String>| {
            text?.parse::<u64>().map_err(|error| format!("{word}: {error}"))
        };
        match word.as_str() {
            "--seeds" => found.seeds = number(text())?,
            "--from" => found.from = number(text())?,
            "--trace" => found.trace = Some(number(text())?),
            "--mutants" => found.mutants = true,
            "--mutant" => found.only = Some(text()?),
            "--theme" => {
                let name = text()?;
                let theme = Theme::ALL.into_iter().find(|theme| name == format!("{theme:?}"));
                found.theme = Some(theme.ok_or(format!("there is no theme {name}"))?);
            }
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(found)
}

fn mutants(arguments: &Arguments) -> bool {
    let end = arguments.from + arguments.seeds;
    let (mut planted, mut caught) = (0, 0);
    for mutant in Mutant::ALL {
        if arguments.only.as_ref().is_some_and(|only| *only != format!("{mutant:?}")) {
            continue;
        }
        planted += 1;
        match catch(mutant, arguments.from..end) {
            Some(Caught { seed, what, without: None }) => {
                caught += 1;
                println!("{mutant:?}: caught at seed {seed}: {what}");
            }
            Some(Caught { seed, without: Some(what), .. }) => {
                println!("{mutant:?}: NOT caught: seed {seed} fails without it, too: {what}");
            }
            None => println!("{mutant:?}: NOT caught in {} seeds", arguments.seeds),
        }
    }
    println!("{planted} planted, {caught} caught");
    planted == caught
}

fn seeds(arguments: &Arguments) -> bool {
    let (mut failed, mut events, mut confirmed, mut recoveries) = (0, 0, 0, 0);
    for seed in arguments.from..arguments.from + arguments.seeds {
        let outcome = run(Run { theme: arguments.theme, ..Run::seed(seed) });
        events += outcome.events;
        confirmed += outcome.confirmed;
        recoveries += outcome.recoveries;
        if let Some(what) = outcome.violation {
            failed += 1;
            println!("seed {seed} FAILED: {what}");
        }
    }
    println!(
        "{} seeds, {failed} failed; {events} events, {confirmed} entries confirmed, \
         {recoveries} recoveries",
        arguments.seeds
    );
    failed == 0
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(why) => {
            println!("{why}");
            return ExitCode::FAILURE;
        }
    };
    let good = match arguments.trace {
        Some(seed) => {
            let mutant = Mutant::ALL
                .into_iter()
                .find(|mutant| arguments.only == Some(format!("{mutant:?}")));
            let planted = mutant.map_or(Run::seed(seed), |mutant| Run::planted(seed, mutant));
            let outcome = run(Run { print: true, ..planted });
            println!("{outcome:?}");
            outcome.violation.is_none()
        }
        None if arguments.mutants || arguments.only.is_some() => mutants(&arguments),
        None => seeds(&arguments),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
