//! Typed records: what the metadata store holds, one file per kind.
//!
//! A record is a plain struct; its stored form is a protobuf message (`record.proto`) that starts
//! with a stamp: the format version of its kind, and the [`Nonce`] of the write that made it.
//!
//! Invariants: a record is validated before it is encoded and after it is decoded; a version that
//! this build doesn't know is refused before any other field is looked at; decoding never panics.

mod bookie;
mod broker;
mod bundle;
mod cluster;
mod cookie;
mod counter;
mod drain;
mod holder;
mod ledger;
mod managed_ledger;
mod namespace;
mod ownership;
mod repair;
mod tenant;
mod topic;

use std::fmt;

use bytes::Bytes;
use geminga_proto::env::Random;
use geminga_proto::v1::record as pb;
use prost::Message;

use crate::store::{Compare, KeyValue, Revision};

pub use bookie::{BookieRecord, BookieState};
pub use broker::BrokerRecord;
pub use bundle::BundleRecord;
pub use cluster::ClusterRecord;
pub use cookie::CookieRecord;
pub use counter::CounterRecord;
pub use drain::{DrainKind, DrainRecord};
pub use holder::HolderRecord;
pub use ledger::{Fragment, LedgerOwner, LedgerRecord, LedgerState};
pub use managed_ledger::{
    ChunkLink, ClosedLedger, LedgerLink, ManagedLedgerChunk, ManagedLedgerRecord,
};
pub use namespace::{NamespacePolicies, NamespaceRecord};
pub use ownership::OwnershipRecord;
pub use repair::{RepairClaim, RepairReason, RepairRecord};
pub use tenant::TenantRecord;
pub use topic::{Shard, TopicRecord};

/// Random number of one write attempt; a record that holds it was written by that attempt.
/// Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nonce(u64);

impl Nonce {
    /// A fresh nonce.
    #[must_use]
    pub fn new(random: &dyn Random) -> Self {
        Self(random.nonzero_u64())
    }

    /// The number; not 0.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Random number of one broker's session: of the time that it holds one lease. A broker that was
/// started again, or that lost its lease and took another, is in another session. 0: a release
/// wrote the record that had none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SessionId(pub u64);

impl SessionId {
    /// A fresh one.
    #[must_use]
    pub fn new(random: &dyn Random) -> Self {
        Self(random.nonzero_u64())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

/// Why a record can't be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes are not a record of this kind.
    #[error("{kind} record can't be decoded: {why}")]
    Malformed {
        /// Kind of record.
        kind: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A newer release wrote it.
    #[error(
        "{kind} record has version {found}, this release reads up to {known}; \
         use the release that wrote it, or a newer one"
    )]
    NewerVersion {
        /// Kind of record.
        kind: &'static str,
        /// Its version.
        found: u32,
        /// The newest version that this build reads.
        known: u32,
    },
    /// The fields contradict each other.
    #[error("{kind} record is invalid: {why}")]
    Invalid {
        /// Kind of record.
        kind: &'static str,
        /// What is wrong.
        why: String,
    },
}

/// One kind of record.
pub trait Record: Sized + Clone + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// Name of the kind, in errors and in the dump.
    const KIND: &'static str;
    /// The version that this build writes, and the newest that it reads.
    const VERSION: u32;
    /// The stored form.
    type Message: Message + Default;

    /// Says what is wrong with the fields, if they contradict each other.
    fn check(&self) -> Result<(), String>;

    /// The stored form.
    fn to_message(&self, stamp: pb::Stamp) -> Self::Message;

    /// Reads the stored form; the error says which field is wrong.
    fn from_message(message: Self::Message) -> Result<Self, String>;

    /// For people: every field, numbers as numbers, no secrets.
    fn to_json(&self) -> serde_json::Value;

    /// Checks the fields.
    ///
    /// # Errors
    /// [`RecordError::Invalid`] if they contradict each other.
    fn validate(&self) -> Result<(), RecordError> {
        self.check().map_err(|why| RecordError::Invalid { kind: Self::KIND, why })
    }

    /// The bytes to store.
    ///
    /// # Errors
    /// [`RecordError::Invalid`] if the fields contradict each other.
    fn encode(&self, nonce: Nonce) -> Result<Bytes, RecordError> {
        self.validate()?;
        let stamp = pb::Stamp { version: Self::VERSION, nonce: nonce.0 };
        Ok(self.to_message(stamp).encode_to_vec().into())
    }

    /// Reads stored bytes, and the nonce of the write that made them.
    ///
    /// # Errors
    /// Any [`RecordError`].
    fn decode(bytes: &[u8]) -> Result<(Self, Nonce), RecordError> {
        let malformed = |why: String| RecordError::Malformed { kind: Self::KIND, why };
        let any = pb::AnyRecord::decode(bytes).map_err(|error| malformed(error.to_string()))?;
        let stamp = any.stamp.ok_or_else(|| malformed("the stamp is missing".to_owned()))?;
        if stamp.version > Self::VERSION {
            let (found, known) = (stamp.version, Self::VERSION);
            return Err(RecordError::NewerVersion { kind: Self::KIND, found, known });
        }
        if stamp.version == 0 || stamp.nonce == 0 {
            return Err(malformed("the stamp's version or nonce is 0".to_owned()));
        }
        let message = Self::Message::decode(bytes).map_err(|error| malformed(error.to_string()))?;
        let record = Self::from_message(message).map_err(malformed)?;
        record.validate()?;
        Ok((record, Nonce(stamp.nonce)))
    }
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<R> {
    /// Its key.
    pub key: String,
    /// The record.
    pub record: R,
    /// Of the write that made it.
    pub nonce: Nonce,
    /// Revision of that write.
    pub revision: Revision,
}

impl<R: Record> Stored<R> {
    /// Decodes a pair.
    ///
    /// # Errors
    /// Any [`RecordError`].
    pub fn from_pair(pair: KeyValue) -> Result<Self, RecordError> {
        let (record, nonce) = R::decode(&pair.value)?;
        Ok(Self { key: pair.key, record, nonce, revision: pair.modified })
    }

    /// Holds as long as nobody has written the key since.
    #[must_use]
    pub fn unchanged(&self) -> Compare {
        Compare::Unchanged(self.key.clone(), self.revision)
    }
}

/// Parses a name that a message holds; the error names the field.
fn parse<T>(field: &str, text: &str) -> Result<T, String>
where
    T: std::str::FromStr,
    T::Err: fmt::Display,
{
    text.parse().map_err(|error: T::Err| format!("{field}: {error}"))
}

/// Refuses numbers beyond the signed range, which Pulsar's clients could not read.
fn in_range(field: &str, value: u64) -> Result<(), String> {
    if value > i64::MAX as u64 { Err(format!("{field} is beyond 2^63-1")) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
