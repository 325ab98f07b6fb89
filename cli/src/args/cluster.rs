//! Flags of a cluster's processes: `geminga broker`, `geminga bookie`, `geminga repair`, `geminga
//! cluster`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::OutputFormat;

/// How etcd is reached.
#[derive(Debug, Clone, Default, Args)]
pub struct MetadataArgs {
    /// URLs of etcd's members, separated by commas [default: http://localhost:2379]
    #[arg(long, value_name = "URLS", help_heading = "Metadata")]
    pub metadata_endpoints: Option<String>,
    /// etcd's user; the password comes from a file or GEMINGA_METADATA_PASSWORD
    #[arg(long, value_name = "USER", help_heading = "Metadata")]
    pub metadata_user: Option<String>,
    /// A file that holds the user's password
    #[arg(long, value_name = "FILE", help_heading = "Metadata")]
    pub metadata_password_file: Option<PathBuf>,
    /// How long to wait for etcd to be reached [default: servers for ever, tools 10s]
    #[arg(long, value_name = "TIME", help_heading = "Metadata")]
    pub metadata_wait: Option<String>,
    /// Name of the cluster; several can share an etcd [default: geminga]
    #[arg(long, value_name = "NAME", help_heading = "Metadata")]
    pub cluster_name: Option<String>,
}

/// What both servers take.
#[derive(Debug, Clone, Default, Args)]
pub struct NodeArgs {
    /// Address to listen on [default: 127.0.0.1]; there is no authentication yet, so think before
    /// opening it to a network
    #[arg(long, value_name = "ADDRESS")]
    pub bind: Option<IpAddr>,
    /// Host name that others are told to connect to [default: the address listened on, or this
    /// machine's name if that is a wildcard]
    #[arg(long, value_name = "HOST")]
    pub advertised_address: Option<String>,
    /// Write the addresses, as JSON, to this file once everything serves
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// How etcd is reached.
    #[command(flatten)]
    pub metadata: MetadataArgs,
}

/// `geminga broker`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  geminga broker
  geminga broker --broker-id b1 --bind 0.0.0.0 --metadata-endpoints http://etcd-1:2379,etcd-2:2379
  geminga broker --grpc-port 0 --admin-port 0 --ready-file ready.json")]
pub struct BrokerArgs {
    /// Its name in the cluster [default: this machine's name and the messaging port]
    #[arg(long, value_name = "NAME")]
    pub broker_id: Option<String>,
    /// Port of the messaging API; 0 picks a free one [default: 6660]
    #[arg(long, value_name = "PORT")]
    pub grpc_port: Option<u16>,
    /// Port of the admin API and metrics; 0 picks a free one [default: 8080]
    #[arg(long, value_name = "PORT")]
    pub admin_port: Option<u16>,
    /// What both servers take.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `geminga bookie`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  geminga bookie --data-dir /var/lib/geminga
  geminga bookie --bookie-id s1 --zone rack-a --bind 0.0.0.0 --data-dir /var/lib/geminga
  geminga bookie --bookie-port 0 --metrics-port 0 --ready-file ready.json")]
pub struct BookieArgs {
    /// Its name in the cluster, which its disk keeps [default: this machine's name and the port]
    #[arg(long, value_name = "NAME")]
    pub bookie_id: Option<String>,
    /// What fails together with it, like a rack; copies are spread over zones [default: none]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// Where it keeps its messages [default: ./geminga-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Port that brokers connect to; 0 picks a free one [default: 3181]
    #[arg(long, value_name = "PORT")]
    pub bookie_port: Option<u16>,
    /// Port of metrics and probes; 0 picks a free one [default: 3182]
    #[arg(long, value_name = "PORT")]
    pub metrics_port: Option<u16>,
    /// What both servers take.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `geminga repair`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  geminga repair
  geminga repair --metadata-endpoints http://etcd-1:2379,etcd-2:2379,etcd-3:2379
  geminga repair --set repair.bytes_per_second=200MiB --set repair.concurrent_ledgers=16")]
pub struct RepairArgs {
    /// Write an empty JSON object to this file once it works
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// How etcd is reached.
    #[command(flatten)]
    pub metadata: MetadataArgs,
}

/// `geminga cluster`.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ClusterCommand,
}

/// What can be done with a cluster as a whole.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Write a new cluster's identity and first namespace into etcd, once, before anything starts
    #[command(after_help = "\
Examples:
  geminga cluster init
  geminga cluster init --metadata-endpoints http://etcd-1:2379,etcd-2:2379,etcd-3:2379
  geminga cluster init --if-absent --output json")]
    Init(InitArgs),
}

/// `geminga cluster init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Succeed without a change if the cluster is there already
    #[arg(long)]
    pub if_absent: bool,
    /// Text for people, or JSON for programs
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value = "text")]
    pub output: OutputFormat,
    /// How etcd is reached.
    #[command(flatten)]
    pub metadata: MetadataArgs,
}
