//! Flags of `geminga admin`.

use std::convert::Infallible;

use clap::builder::RangedI64ValueParser;
use clap::{ArgGroup, Args, Subcommand};
use geminga_meta::record::NamespaceRecord;
use geminga_proto::topic_name::{NameError, NamespaceName};

use super::{ClientArgs, OutputFormat};

/// `geminga admin`.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// What to look after.
    #[command(subcommand)]
    pub command: AdminCommand,
    /// A table for people, or JSON for programs
    #[arg(long, short, global = true, value_name = "FORMAT", value_enum, default_value = "text")]
    pub output: OutputFormat,
    /// Where the cluster is.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// What can be looked after.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Topics
    #[command(subcommand)]
    Topics(TopicsCommand),
    /// Subscriptions
    #[command(subcommand)]
    Subscriptions(SubscriptionsCommand),
    /// Ledgers
    #[command(subcommand)]
    Ledgers(LedgersCommand),
    /// Tenants
    #[command(subcommand)]
    Tenants(TenantsCommand),
    /// Namespaces
    #[command(subcommand)]
    Namespaces(NamespacesCommand),
    /// Metadata records
    #[command(subcommand)]
    Meta(MetaCommand),
    /// The brokers and what is in force there
    #[command(subcommand)]
    Brokers(BrokersCommand),
    /// The storage nodes
    #[command(subcommand)]
    Bookies(BookiesCommand),
    /// Replacing lost copies
    #[command(subcommand)]
    Repairs(RepairsCommand),
    /// Which broker has which part of a namespace
    #[command(subcommand)]
    Bundles(BundlesCommand),
    /// The cluster as a whole
    #[command(subcommand)]
    Cluster(ClusterCommand),
}

/// `geminga admin topics`.
#[derive(Debug, Subcommand)]
pub enum TopicsCommand {
    /// The topics of a namespace
    #[command(after_help = "Example: geminga admin topics list public/default")]
    List {
        /// tenant/namespace [default: that of --tenant and --namespace]
        #[arg(value_parser = namespace_name)]
        namespace: Option<String>,
    },
    /// Rates, sizes, producers and subscriptions of a topic
    #[command(after_help = "Example: geminga admin topics stats orders")]
    Stats {
        /// The topic
        topic: String,
    },
    /// The ledgers and cursors of a topic
    #[command(after_help = "Example: geminga admin topics internal-stats orders")]
    InternalStats {
        /// The topic
        topic: String,
    },
    /// Create a topic
    #[command(after_help = "Example: geminga admin topics create orders")]
    Create {
        /// The topic
        topic: String,
        /// Partitioned topics are not built yet
        #[arg(long, value_name = "N", hide = true, value_parser = no_partitions)]
        partitions: Option<Infallible>,
    },
    /// Delete a topic with its data
    #[command(after_help = "Example: geminga admin topics delete orders --force")]
    Delete {
        /// The topic
        topic: String,
        /// Even if it has producers, consumers or subscriptions
        #[arg(long)]
        force: bool,
    },
    /// Close a topic and take it out of the broker's memory
    #[command(after_help = "Example: geminga admin topics unload orders")]
    Unload {
        /// The topic
        topic: String,
    },
}

/// `geminga admin subscriptions`.
#[derive(Debug, Subcommand)]
pub enum SubscriptionsCommand {
    /// The subscriptions of a topic
    #[command(after_help = "Example: geminga admin subscriptions list orders")]
    List {
        /// The topic
        topic: String,
    },
    /// Create a subscription without a consumer
    #[command(after_help = "\
Example: geminga admin subscriptions create orders -s billing --from earliest")]
    Create {
        /// The topic
        topic: String,
        /// The subscription
        #[arg(long, short, value_name = "NAME")]
        subscription: String,
        /// earliest, latest, or a message's ledger:entry
        #[arg(long, value_name = "WHERE", default_value = "latest")]
        from: Place,
    },
    /// Move a subscription; its consumers reconnect
    #[command(after_help = "\
Examples:
  geminga admin subscriptions reset orders -s billing --to earliest
  geminga admin subscriptions reset orders -s billing --to 17:42")]
    Reset {
        /// The topic
        topic: String,
        /// The subscription
        #[arg(long, short, value_name = "NAME")]
        subscription: String,
        /// earliest, latest, or the ledger:entry that is delivered next
        #[arg(long, value_name = "WHERE")]
        to: Place,
    },
    /// Delete a subscription
    #[command(after_help = "Example: geminga admin subscriptions delete orders -s billing")]
    Delete {
        /// The topic
        topic: String,
        /// The subscription
        #[arg(long, short, value_name = "NAME")]
        subscription: String,
        /// Even if it has consumers
        #[arg(long)]
        force: bool,
    },
}

/// As many bundles as a namespace can have.
fn bundle_count() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=NamespaceRecord::MAX_BUNDLES as i64)
}

/// A namespace's whole name.
fn namespace_name(text: &str) -> Result<String, String> {
    let name: NamespaceName = text.parse().map_err(|error: NameError| error.to_string())?;
    Ok(name.to_string())
}

fn no_partitions(_count: &str) -> Result<Infallible, String> {
    Err("partitioned topics are not built yet; create several topics instead".to_owned())
}

/// A place in a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before the first message that is kept.
    Earliest,
    /// After the last message.
    Latest,
    /// An entry.
    Entry {
        /// Its ledger.
        ledger: u64,
        /// Its number there.
        entry: u64,
    },
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "{text:?} is no place: use earliest, latest or ledger:entry. Moving to a time or \
                 into a batch is not built yet"
            )
        };
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => {
                let (ledger, entry) = text.split_once(':').ok_or_else(refuse)?;
                let number = |text: &str| match text.parse::<u64>() {
                    Ok(number) if i64::try_from(number).is_ok() => Ok(number),
                    _ => Err(refuse()),
                };
                Ok(Self::Entry { ledger: number(ledger)?, entry: number(entry)? })
            }
        }
    }
}

/// `geminga admin ledgers`.
#[derive(Debug, Subcommand)]
pub enum LedgersCommand {
    /// All ledgers, or those of a topic
    #[command(after_help = "Example: geminga admin ledgers list --topic orders")]
    List {
        /// Only the ledgers of this topic
        #[arg(long, value_name = "TOPIC")]
        topic: Option<String>,
    },
    /// One ledger with its fragments, and what waits for repair
    #[command(after_help = "Example: geminga admin ledgers show 17")]
    Show {
        /// The ledger's number
        ledger: u64,
    },
    /// Read every copy of a ledger's entries and compare them; exit code 4 if any is not good
    #[command(after_help = "Example: geminga admin ledgers check 17")]
    Check {
        /// The ledger's number
        ledger: u64,
    },
}

/// `geminga admin repairs`.
#[derive(Debug, Subcommand)]
pub enum RepairsCommand {
    /// The ledgers that wait for repair, why, and who is at them
    #[command(after_help = "Example: geminga admin repairs list")]
    List,
}

/// `geminga admin tenants`.
#[derive(Debug, Subcommand)]
pub enum TenantsCommand {
    /// All tenants
    #[command(after_help = "Example: geminga admin tenants list")]
    List,
    /// Create a tenant
    #[command(after_help = "Example: geminga admin tenants create acme")]
    Create {
        /// Its name
        tenant: String,
    },
    /// Delete a tenant that has no namespaces
    #[command(after_help = "Example: geminga admin tenants delete acme")]
    Delete {
        /// Its name
        tenant: String,
    },
}

/// `geminga admin namespaces`.
#[derive(Debug, Subcommand)]
pub enum NamespacesCommand {
    /// The namespaces of a tenant
    #[command(after_help = "Example: geminga admin namespaces list acme")]
    List {
        /// The tenant [default: that of --tenant]
        tenant: Option<String>,
    },
    /// Create a namespace
    #[command(after_help = "Example: geminga admin namespaces create acme/shop --bundles 4")]
    Create {
        /// tenant/namespace
        #[arg(value_parser = namespace_name)]
        namespace: String,
        /// Number of bundles [default: the broker's]
        #[arg(long, value_name = "N", value_parser = bundle_count())]
        bundles: Option<u32>,
    },
    /// A namespace's policies
    #[command(after_help = "Example: geminga admin namespaces policies acme/shop")]
    Policies {
        /// tenant/namespace
        #[arg(value_parser = namespace_name)]
        namespace: String,
    },
    /// Delete a namespace that has no topics
    #[command(after_help = "Example: geminga admin namespaces delete acme/shop")]
    Delete {
        /// tenant/namespace
        #[arg(value_parser = namespace_name)]
        namespace: String,
    },
}

/// `geminga admin meta`.
#[derive(Debug, Subcommand)]
pub enum MetaCommand {
    /// Every metadata record, as one JSON object a line
    #[command(after_help = "Example: geminga admin meta dump --prefix topics/")]
    Dump {
        /// Only keys that start so
        #[arg(long, value_name = "PREFIX", default_value = "")]
        prefix: String,
    },
}

/// `geminga admin brokers`.
#[derive(Debug, Subcommand)]
pub enum BrokersCommand {
    /// The brokers that are up, with how much each has
    #[command(after_help = "Example: geminga admin brokers list")]
    List,
    /// Whether the broker is healthy
    #[command(after_help = "Example: geminga admin brokers health")]
    Health,
    /// How durable a receipt is, as it is in force
    #[command(after_help = "Example: geminga admin brokers durability")]
    Durability,
    /// What the broker's queues hold and may hold
    #[command(after_help = "Example: geminga admin brokers queues")]
    Queues,
}

/// `geminga admin bookies`.
#[derive(Debug, Subcommand)]
pub enum BookiesCommand {
    /// The storage nodes, also those that are missing, with zone, free space and what is on them
    #[command(after_help = "Example: geminga admin bookies list")]
    List,
    /// Copy what a bookie has elsewhere, so that it can be taken away, and wait for that
    #[command(after_help = "\
Examples:
  geminga admin bookies decommission bookie-3
  geminga admin bookies decommission bookie-3 --no-wait
  geminga admin bookies decommission bookie-3 --cancel")]
    Decommission(DrainArgs),
    /// Copy what a lost bookie had from the others, without waiting any longer for it
    #[command(after_help = "\
Examples:
  geminga admin bookies recover bookie-3
  geminga admin bookies recover bookie-3 --no-wait")]
    Recover(DrainArgs),
    /// Have a bookie read and verify all that it has, and wait for that
    #[command(after_help = "\
Exits with 4 if something is damaged, which repair then writes anew from other copies.

Examples:
  geminga admin bookies scrub bookie-3
  geminga admin bookies scrub bookie-3 --status")]
    Scrub(ScrubArgs),
}

/// Which bookie verifies, and whether to wait.
#[derive(Debug, Args)]
pub struct ScrubArgs {
    /// The bookie's name
    pub bookie: String,
    /// Begin nothing; show how far it is
    #[arg(long)]
    pub status: bool,
    /// Don't wait until it is done
    #[arg(long, conflicts_with = "status")]
    pub no_wait: bool,
}

/// Which bookie, and whether to wait.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The bookie's name
    pub bookie: String,
    /// Don't wait until it is done; asking again shows how far it is
    #[arg(long)]
    pub no_wait: bool,
    /// Leave the bookie where it is after all; what was copied stays copied
    #[arg(long, conflicts_with = "no_wait")]
    pub cancel: bool,
}

/// `geminga admin bundles`.
#[derive(Debug, Subcommand)]
pub enum BundlesCommand {
    /// The bundles of a namespace with their owners
    #[command(after_help = "Example: geminga admin bundles list public/default")]
    List {
        /// tenant/namespace [default: that of --tenant and --namespace]
        #[arg(value_parser = namespace_name)]
        namespace: Option<String>,
    },
    /// Take a bundle, or all of a namespace, from its owner; the next one takes over at once
    #[command(
        after_help = "\
Examples:
  geminga admin bundles unload public/default 00000000-3fffffff
  geminga admin bundles unload public/default --all",
        override_usage = "geminga admin bundles unload [OPTIONS] <NAMESPACE> <BUNDLE|--all>",
        group(ArgGroup::new("which").required(true).args(["bundle", "all"]))
    )]
    Unload {
        /// tenant/namespace
        #[arg(value_parser = namespace_name)]
        namespace: String,
        /// The bundle, as `bundles list` names it
        bundle: Option<String>,
        /// All bundles of the namespace
        #[arg(long)]
        all: bool,
    },
}

/// `geminga admin cluster`.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Whether the cluster is healthy, or what is degraded and why; exit code 4 if it is degraded
    #[command(after_help = "\
Examples:
  geminga admin cluster status
  geminga admin cluster status --output json")]
    Status,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_earliest_latest_or_an_entry() {
        assert_eq!("earliest".parse(), Ok(Place::Earliest));
        assert_eq!("17:42".parse(), Ok(Place::Entry { ledger: 17, entry: 42 }));
        for text in ["", "17", "17:", ":3", "-1:-1", "1:9223372036854775808", "first"] {
            assert!(text.parse::<Place>().is_err(), "{text:?}");
        }
    }
}
