//! What every other crate speaks: ids, topic names, the entry layout, the messages of every wire
//! and record, and the injected sources of time and randomness.
//!
//! *Architecture invariant:* nothing here opens a socket or a file by itself, starts a task, or
//! knows another Geminga crate. Everything that parses is a pure function over bytes and never
//! panics. The feature `server` adds `incoming`, which takes the connections of a listener that it
//! is given; whatever serves no port leaves it out.

pub mod append_wire;
pub mod codec;
pub mod entry;
pub mod env;
pub mod id;
#[cfg(feature = "server")]
pub mod incoming;
pub mod payload;
pub mod storage;
pub mod stream;
pub mod topic_name;

/// The messages and services of Geminga's own gRPC APIs (`proto/geminga/v1`).
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("geminga.v1");

    /// Metadata records.
    pub mod record {
        tonic::include_proto!("geminga.v1.record");
    }
}

/// Apache Pulsar's messages, as far as they are stored or spoken.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod pulsar {
    /// `pulsar.proto`'s package.
    pub mod proto {
        tonic::include_proto!("pulsar.proto");
    }
}

/// Header of a request to a bookie: the cluster that it is meant for.
pub const CLUSTER_HEADER: &str = "geminga-cluster";
/// Header of a request to a bookie: the bookie that it is meant for.
pub const BOOKIE_HEADER: &str = "geminga-bookie";
/// The protocol versions of the gRPC APIs that this build speaks.
pub const PROTOCOL: std::ops::RangeInclusive<u32> = 1..=1;
