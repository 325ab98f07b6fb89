//! The command line as it was typed: raw flags, nothing resolved. What a flag means together
//! with files and the environment is `config`'s business.

use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, Parser, Subcommand, ValueEnum};

pub mod admin;
pub mod cluster;
pub mod consume;
pub mod perf;
pub mod produce;
pub mod standalone;

/// Shown at the end of `geminga --help`.
const AFTER_HELP: &str = "\
Exit codes:
  0    everything that was asked for is done, or as much as a reader of the output wanted; a server:
       it was ended by a signal, in order
  1    it failed; the error says what, why and what to do
  2    the command line or a setting is wrong; nothing was started
  3    no progress within --timeout
  4    `admin cluster status`: the cluster is degraded; `admin ledgers check`: a copy isn't good;
       `admin bookies scrub`: something is damaged
  130  interrupted by Ctrl-C; a server: by a second one, while it closed
  143  a server: by a second SIGTERM, while it closed

Settings resolve as: defaults < file (--config) < environment (GEMINGA_…) < flags.
`geminga standalone --print-config` shows all of them and where each comes from.

Examples:
  geminga standalone
  seq 1000 | geminga produce numbers
  geminga consume numbers -s mine --count 10
  geminga admin topics stats numbers

A cluster: `geminga cluster init` once, then `geminga bookie` and `geminga broker` as often as
wanted; scripts/cluster does it on one machine.";

/// A build whose bookies' disks fail when told to says what it is.
const VERSION: &str = if cfg!(feature = "faulty-device") {
    concat!(env!("CARGO_PKG_VERSION"), " (faulty-device: a build for tests)")
} else {
    env!("CARGO_PKG_VERSION")
};

/// A durable messaging system with Pulsar's model, in one binary.
#[derive(Debug, Parser)]
#[command(name = "geminga", version = VERSION, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// Settings for every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub struct GlobalArgs {
    /// Read settings from this TOML file [environment: GEMINGA_CONFIG]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Settings")]
    pub config: Option<PathBuf>,
    /// Print all settings with their origin as TOML, and do nothing else
    #[arg(long, global = true, help_heading = "Settings")]
    pub print_config: bool,
    /// Set any setting by its name in the file, for example broker.retention=1h
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", help_heading = "Settings")]
    pub set: Vec<String>,
    /// What is logged to stderr: error, warn, info, debug, trace, or a filter like
    /// info,geminga_broker=debug
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Settings")]
    pub log: Option<String>,
}

/// Where a command finds its cluster.
#[derive(Debug, Clone, Default, Args)]
pub struct ClientArgs {
    /// Where brokers are reached; several URLs are separated by commas
    /// [default: http://localhost:6660] [environment: GEMINGA_SERVICE_URL]
    #[arg(long, global = true, value_name = "URLS", help_heading = "Connection")]
    pub service_url: Option<String>,
    /// Where the admin API is reached; several URLs are separated by commas
    /// [default: http://localhost:8080] [environment: GEMINGA_ADMIN_URL]
    #[arg(long, global = true, value_name = "URLS", help_heading = "Connection")]
    pub admin_url: Option<String>,
    /// Tenant of topics that are named without one [default: public]
    #[arg(
        id = "short-name-tenant",
        long = "tenant",
        global = true,
        value_name = "TENANT",
        help_heading = "Connection"
    )]
    pub tenant: Option<String>,
    /// Namespace of topics that are named without one [default: default]
    // A global flag goes to every command, whose own arguments must not have the same id.
    #[arg(
        id = "short-name-namespace",
        long = "namespace",
        global = true,
        value_name = "NAMESPACE",
        help_heading = "Connection"
    )]
    pub namespace: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole cluster in this process: broker, bookie and metadata
    Standalone(standalone::StandaloneArgs),
    /// Run a broker of a cluster
    Broker(cluster::BrokerArgs),
    /// Run a storage node of a cluster
    Bookie(cluster::BookieArgs),
    /// Replace lost copies, beside the bookies, which do so too
    Repair(cluster::RepairArgs),
    /// Make a new cluster
    Cluster(cluster::ClusterArgs),
    /// Publish the lines of a file, or a file as one message
    Produce(produce::ProduceArgs),
    /// Receive, write out and acknowledge messages
    Consume(consume::ConsumeArgs),
    /// Measure throughput and latency
    #[command(subcommand)]
    Perf(perf::PerfCommand),
    /// Look after topics, subscriptions, ledgers and metadata
    Admin(admin::AdminArgs),
    /// Print a shell's completion script
    Completions(CompletionsArgs),
}

/// `geminga completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  geminga completions bash > /etc/bash_completion.d/geminga
  geminga completions fish > ~/.config/fish/completions/geminga.fish")]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Text or JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON object.
    Json,
}

/// By hand, so that the values have no help of their own: with it, clap shows every flag of a
/// command over several lines.
impl ValueEnum for OutputFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Text, Self::Json]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::Text => "text",
            Self::Json => "json",
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn connection_flags_stand_anywhere_and_are_not_taken_for_arguments() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).expect("valid").command;
        let of = |command| match command {
            Command::Admin(args) => args.client,
            other => panic!("not parsed as admin: {other:?}"),
        };
        let plain = of(parse("geminga admin topics list acme/shop"));
        assert_eq!((plain.tenant, plain.namespace), (None, None));
        let after = of(parse("geminga admin namespaces list --tenant acme --admin-url http://a:1"));
        assert_eq!(after.tenant.as_deref(), Some("acme"));
        assert_eq!(after.admin_url.as_deref(), Some("http://a:1"));
        let before = of(parse("geminga admin --namespace shop tenants create acme"));
        assert_eq!((before.tenant, before.namespace.as_deref()), (None, Some("shop")));
    }

    #[test]
    fn every_command_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name());
                if sub.get_subcommands().next().is_some() {
                    check(sub, &path);
                    continue;
                }
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "{path} shows no example");
                assert!(help.contains(&path), "{path}: its example is of another command");
            }
        }
        check(&Cli::command(), "geminga");
    }
}
