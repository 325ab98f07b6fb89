//! Flags of `geminga produce`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{ClientArgs, OutputFormat};
use crate::config::units::{parse_bytes, parse_some_duration};

/// `geminga produce`.
#[derive(Debug, Args)]
#[command(after_help = "\
A message is a line without its newline. Lines are bytes and need not be text.

Examples:
  seq 1000 | geminga produce numbers
  geminga produce logs --file /var/log/syslog --compression zstd
  geminga produce images --file cat.png --whole-file
  printf 'k1:v1\\nk2:v2\\n' | geminga produce acme/shop/orders --key-separator :")]
pub struct ProduceArgs {
    /// The topic: name, tenant/namespace/name or persistent://tenant/namespace/name
    pub topic: String,
    /// What to send; - is standard input
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    pub file: PathBuf,
    /// Send the file's bytes as one message
    #[arg(long)]
    pub whole_file: bool,
    /// What stands before the first of these in a line is the message's key
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "whole_file",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    pub key_separator: Option<String>,
    /// none, lz4 or zstd
    #[arg(long, value_name = "CODEC", default_value = "none")]
    pub compression: geminga_client::Compression,
    /// Most bytes in one batch, before compression
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "128KiB")]
    pub batch_bytes: u64,
    /// Messages a second; 0 is as fast as possible
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub rate: u64,
    /// How long a message may wait for its receipt
    #[arg(long, value_name = "TIME", value_parser = parse_some_duration, default_value = "30s")]
    pub timeout: Duration,
    /// What the summary looks like: text goes to stderr, JSON to stdout
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value = "text")]
    pub output: OutputFormat,
    /// Where the cluster is.
    #[command(flatten)]
    pub client: ClientArgs,
}
