//! Flags of `geminga consume`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::ClientArgs;
use crate::config::units::parse_duration;

/// `geminga consume`.
#[derive(Debug, Args)]
#[command(after_help = "\
A message is acknowledged after it was written to standard output. All acknowledgements are
durable before the command ends.

Examples:
  geminga consume numbers -s mine --count 10
  geminga consume logs -s archive --until-caught-up > all.log
  geminga consume images -s show --count 1 --whole-file > cat.png
  geminga consume orders -s billing --type shared --output json")]
pub struct ConsumeArgs {
    /// The topic: name, tenant/namespace/name or persistent://tenant/namespace/name
    pub topic: String,
    /// The subscription; it is created if it doesn't exist
    #[arg(long, short, value_name = "NAME")]
    pub subscription: String,
    /// How the subscription hands out messages
    #[arg(long = "type", value_name = "TYPE", value_enum, default_value = "exclusive")]
    pub subscription_type: TypeArg,
    /// Where a new subscription starts
    #[arg(long, value_name = "WHERE", value_enum, default_value = "earliest")]
    pub from: FromArg,
    /// End after acknowledging exactly this many messages
    #[arg(long, value_name = "N", conflicts_with = "until_caught_up")]
    pub count: Option<u64>,
    /// End when everything that was stored at the start is acknowledged
    #[arg(long)]
    pub until_caught_up: bool,
    /// Without progress for so long, end with exit code 3 [default: 30s with --count or
    /// --until-caught-up, else wait for ever]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// raw writes the payload and a newline, json one object a line
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value = "raw")]
    pub output: MessageFormat,
    /// Write payloads without a newline after them
    #[arg(long)]
    pub whole_file: bool,
    /// Where the cluster is.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// A subscription's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TypeArg {
    /// One consumer; another is refused
    Exclusive,
    /// One consumer is active, the others wait to take over
    Failover,
    /// Messages are dealt out among the consumers
    Shared,
    /// Not supported by brokers of this version
    KeyShared,
}

impl From<TypeArg> for geminga_client::SubscriptionType {
    fn from(arg: TypeArg) -> Self {
        match arg {
            TypeArg::Exclusive => Self::Exclusive,
            TypeArg::Failover => Self::Failover,
            TypeArg::Shared => Self::Shared,
            TypeArg::KeyShared => Self::KeyShared,
        }
    }
}

/// Where a new subscription starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FromArg {
    /// At the first message that is kept
    Earliest,
    /// After the last message
    Latest,
}

impl From<FromArg> for geminga_client::InitialPosition {
    fn from(arg: FromArg) -> Self {
        match arg {
            FromArg::Earliest => Self::Earliest,
            FromArg::Latest => Self::Latest,
        }
    }
}

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MessageFormat {
    /// The payload's bytes
    Raw,
    /// One JSON object a line
    Json,
}
