//! Flags of `geminga perf`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{ClientArgs, OutputFormat};
use crate::config::units::{parse_bytes, parse_duration, parse_some_duration};

/// `geminga perf`.
#[derive(Debug, Subcommand)]
pub enum PerfCommand {
    /// Publish at a rate and measure the time to the receipt
    #[command(after_help = "\
Examples:
  geminga perf produce load --rate 10000
  geminga perf produce load --size 64KiB --batching off --producers 4
  geminga perf produce load --in-flight 1 --output json")]
    Produce(LoadArgs),
    /// Receive and acknowledge what is in the topics, as fast as it comes
    #[command(after_help = "\
The latency is that from the producer's publish time, by two processes' clocks, in whole
milliseconds.

Examples:
  geminga perf consume load --consumers 2 --output json")]
    Consume(LoadArgs),
    /// Publish, receive and acknowledge; measure the time from the intended send to the receive
    #[command(after_help = "\
Examples:
  geminga perf roundtrip load --rate 10000 --duration 30s
  geminga perf roundtrip load --consumers 100 --stalled 1")]
    Roundtrip(RoundtripArgs),
    /// Use new topics for the first time: open a producer, publish one message, close it
    #[command(after_help = "\
Examples:
  geminga perf topics fresh --count 10000 --in-flight 32")]
    Topics(TopicsArgs),
    /// Append to a storage node's log in this process, without a network
    #[command(after_help = "\
Examples:
  geminga perf bookie --dir /var/lib/geminga --size 64KiB")]
    Bookie(StorageArgs),
    /// Delete ledgers of a storage node's log in this process: what giving space back costs
    #[command(after_help = "\
Examples:
  geminga perf reclaim --dir /var/lib/geminga --total 4GiB")]
    Reclaim(ReclaimArgs),
    /// Write a preallocated file, one synchronous write in flight: what the disk can do
    #[command(after_help = "\
Examples:
  geminga perf disk --dir /var/lib/geminga --size 1MiB")]
    Disk(DiskArgs),
}

/// Flags of the load over the network.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// The topic; with --topics it is a prefix
    pub topic: String,
    /// Bytes of a message
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "1KiB")]
    pub size: u64,
    /// Messages a second, over all producers; 0 is as fast as possible
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub rate: u64,
    /// Producers on each topic, where messages are published
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub producers: u32,
    /// Consumers on each topic, where messages are received
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub consumers: u32,
    /// Topics: TOPIC itself, or TOPIC-0, TOPIC-1, … if there are several
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    pub topics: u32,
    /// Messages without a receipt that each producer may have
    #[arg(
        long,
        value_name = "N",
        default_value_t = 10_000,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub in_flight: u32,
    /// How long to measure
    #[arg(long, value_name = "TIME", value_parser = parse_some_duration, default_value = "8s")]
    pub duration: Duration,
    /// Load before the measuring starts
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1s")]
    pub warmup: Duration,
    /// Whether messages share entries
    #[arg(long, value_enum, default_value = "on")]
    pub batching: OnOff,
    /// Most bytes in one batch
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "128KiB")]
    pub batch_bytes: u64,
    /// none, lz4 or zstd; payloads are random bytes
    #[arg(long, value_name = "CODEC", default_value = "none")]
    pub compression: geminga_client::Compression,
    /// The consumers' subscription
    #[arg(long, short, value_name = "NAME", default_value = "perf")]
    pub subscription: String,
    /// What the result on stdout looks like
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value = "text")]
    pub output: OutputFormat,
    /// Where the cluster is.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Flags of `perf roundtrip`.
#[derive(Debug, Clone, Args)]
pub struct RoundtripArgs {
    /// The load.
    #[command(flatten)]
    pub load: LoadArgs,
    /// Consumers of each topic that receive nothing of what the broker sends them
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub stalled: u32,
}

/// Flags of `perf topics`.
#[derive(Debug, Clone, Args)]
pub struct TopicsArgs {
    /// The topics are called PREFIX-0, PREFIX-1, …
    pub prefix: String,
    /// How many topics
    #[arg(
        long,
        value_name = "N",
        default_value_t = 10_000,
        value_parser = clap::value_parser!(u32).range(1..=10_000_000)
    )]
    pub count: u32,
    /// How many at once
    #[arg(
        long,
        value_name = "N",
        default_value_t = 32,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub in_flight: u32,
    /// Bytes of a message
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "1KiB")]
    pub size: u64,
    /// What the result on stdout looks like
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value = "text")]
    pub output: OutputFormat,
    /// Where the cluster is.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Flags of `perf bookie`.
#[derive(Debug, Clone, Args)]
pub struct StorageArgs {
    /// A directory on the disk to measure; a directory is made in it and removed at the end
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Bytes of an entry
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "64KiB")]
    pub size: u64,
    /// Entries a second; 0 is as fast as possible
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub rate: u64,
    /// Ledgers written at once
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    pub ledgers: u32,
    /// Entries without an answer
    #[arg(
        long,
        value_name = "N",
        default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub in_flight: u32,
    /// How long to measure
    #[arg(long, value_name = "TIME", value_parser = parse_some_duration, default_value = "8s")]
    pub duration: Duration,
    /// Load before the measuring starts
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1s")]
    pub warmup: Duration,
    /// What the result on stdout looks like
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value = "text")]
    pub output: OutputFormat,
}

/// Flags of `perf reclaim`.
#[derive(Debug, Clone, Args)]
pub struct ReclaimArgs {
    /// A directory on the disk to measure; a directory is made in it and removed at the end
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Bytes of an entry
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "64KiB")]
    pub size: u64,
    /// Ledgers written at once
    #[arg(
        long,
        value_name = "N",
        default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(2..=10_000)
    )]
    pub ledgers: u32,
    /// Bytes that each of the two workloads appends
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "4GiB")]
    pub total: u64,
    /// What the result on stdout looks like
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value = "text")]
    pub output: OutputFormat,
}

/// Flags of `perf disk`.
#[derive(Debug, Clone, Args)]
pub struct DiskArgs {
    /// A directory on the disk to measure; a file is made in it and removed at the end
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Bytes of one write, a multiple of 4 KiB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "1MiB")]
    pub size: u64,
    /// Bytes of the file that is written over and over
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "1GiB")]
    pub file_size: u64,
    /// How long to measure
    #[arg(long, value_name = "TIME", value_parser = parse_some_duration, default_value = "8s")]
    pub duration: Duration,
    /// What the result on stdout looks like
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value = "text")]
    pub output: OutputFormat,
}

/// A switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// Yes
    On,
    /// No
    Off,
}
