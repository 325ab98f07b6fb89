//! `geminga completions`: a shell's completion script on standard output.

use clap::CommandFactory;

use crate::args::{Cli, CompletionsArgs};
use crate::exit::Outcome;
use crate::output;

/// Writes the script.
///
/// # Errors
/// Standard output can't be written to.
pub fn run(args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "geminga", &mut script);
    Ok(output::line(String::from_utf8_lossy(&script).trim_end())?)
}
