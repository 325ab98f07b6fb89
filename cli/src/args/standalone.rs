//! Flags of `geminga standalone`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

/// `geminga standalone`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  geminga standalone
  geminga standalone --data-dir /var/lib/geminga --bind 0.0.0.0
  geminga standalone --grpc-port 0 --admin-port 0 --bookie-port 0 --ready-file ready.json
  geminga standalone --print-config > geminga.toml")]
pub struct StandaloneArgs {
    /// Where everything is stored [default: ./geminga-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1]; there is no authentication yet, so think before
    /// opening it to a network
    #[arg(long, value_name = "ADDRESS")]
    pub bind: Option<IpAddr>,
    /// Host name that clients are told to connect to [default: the address listened on, or this
    /// machine's name if that is a wildcard]
    #[arg(long, value_name = "HOST")]
    pub advertised_address: Option<String>,
    /// Port of the messaging API; 0 picks a free one [default: 6660]
    #[arg(long, value_name = "PORT")]
    pub grpc_port: Option<u16>,
    /// Port of the admin API and metrics; 0 picks a free one [default: 8080]
    #[arg(long, value_name = "PORT")]
    pub admin_port: Option<u16>,
    /// Port of the storage node; 0 picks a free one [default: 3181]
    #[arg(long, value_name = "PORT")]
    pub bookie_port: Option<u16>,
    /// Port of Pulsar's binary protocol, which isn't built yet: 0 is accepted and opens nothing,
    /// any other port is refused
    #[arg(long, value_name = "PORT")]
    pub pulsar_port: Option<u16>,
    /// Write the addresses, as JSON, to this file once everything serves
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}
