//! A namespace: how its topics fall into bundles, and its policies.

use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::Record;
use crate::bundle::HashRange;

/// A namespace's policies. `None`: the broker's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NamespacePolicies {
    /// How long consumed data is kept.
    pub retention_ms: Option<u64>,
    /// How many bytes of consumed data are kept per topic.
    pub retention_bytes: Option<u64>,
    /// Whether topics are created by their first use.
    pub auto_topic_creation: Option<bool>,
    /// Copies written of each entry.
    pub write_quorum: Option<u32>,
    /// Copies synced before a receipt.
    pub ack_quorum: Option<u32>,
}

/// Below `keys::namespace`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceRecord {
    /// When it was created.
    pub created_ms: u64,
    /// Lower bounds of the bundles' hash ranges: rising, the first is 0.
    pub bundle_bounds: Vec<u32>,
    /// Its policies.
    pub policies: NamespacePolicies,
}

impl NamespaceRecord {
    /// Most bundles of one namespace; keeps the record small.
    pub const MAX_BUNDLES: usize = 4096;

    /// Bounds that cut the hashes into `bundles` ranges of the same size.
    ///
    /// # Panics
    /// Unless `bundles` is between 1 and [`Self::MAX_BUNDLES`].
    #[must_use]
    pub fn even_bounds(bundles: u32) -> Vec<u32> {
        let allowed = 1..=Self::MAX_BUNDLES as u64;
        assert!(allowed.contains(&u64::from(bundles)), "{bundles} bundles are out of range");
        let bound = |bundle: u32| (u64::from(bundle) << 32) / u64::from(bundles);
        (0..bundles).map(|bundle| u32::try_from(bound(bundle)).unwrap_or(u32::MAX)).collect()
    }

    /// The bundle that a topic's hash falls into.
    #[must_use]
    pub fn bundle_of(&self, hash: u32) -> HashRange {
        // Bounds start at 0, so at least one is not above any hash.
        let after = self.bundle_bounds.partition_point(|bound| *bound <= hash);
        let first = after.checked_sub(1).and_then(|index| self.bundle_bounds.get(index));
        let last = self.bundle_bounds.get(after).map_or(u32::MAX, |next| next.saturating_sub(1));
        HashRange { first: first.copied().unwrap_or(0), last }
    }

    /// All bundles, in order.
    #[must_use]
    pub fn bundles(&self) -> Vec<HashRange> {
        self.bundle_bounds.iter().map(|bound| self.bundle_of(*bound)).collect()
    }
}

impl Record for NamespaceRecord {
    const KIND: &'static str = "namespace";
    const VERSION: u32 = 1;
    type Message = pb::NamespaceRecord;

    fn check(&self) -> Result<(), String> {
        if self.bundle_bounds.first() != Some(&0) {
            return Err("bundle_bounds does not start with 0".to_owned());
        }
        if self.bundle_bounds.len() > Self::MAX_BUNDLES {
            return Err(format!("more than {} bundles", Self::MAX_BUNDLES));
        }
        if !self.bundle_bounds.is_sorted_by(|left, right| left < right) {
            return Err("bundle_bounds does not rise".to_owned());
        }
        let (write, ack) = (self.policies.write_quorum, self.policies.ack_quorum);
        if write == Some(0) || ack == Some(0) {
            return Err("a quorum is 0".to_owned());
        }
        if let (Some(write), Some(ack)) = (write, ack)
            && ack > write
        {
            return Err("ack_quorum is above write_quorum".to_owned());
        }
        Ok(())
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::NamespaceRecord {
        pb::NamespaceRecord {
            stamp: Some(stamp),
            created_ms: self.created_ms,
            bundle_bounds: self.bundle_bounds.clone(),
            policies: Some(pb::NamespacePolicies {
                retention_ms: self.policies.retention_ms,
                retention_bytes: self.policies.retention_bytes,
                auto_topic_creation: self.policies.auto_topic_creation,
                write_quorum: self.policies.write_quorum,
                ack_quorum: self.policies.ack_quorum,
            }),
        }
    }

    fn from_message(message: pb::NamespaceRecord) -> Result<Self, String> {
        let policies = message.policies.unwrap_or_default();
        Ok(Self {
            created_ms: message.created_ms,
            bundle_bounds: message.bundle_bounds,
            policies: NamespacePolicies {
                retention_ms: policies.retention_ms,
                retention_bytes: policies.retention_bytes,
                auto_topic_creation: policies.auto_topic_creation,
                write_quorum: policies.write_quorum,
                ack_quorum: policies.ack_quorum,
            },
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "created_ms": self.created_ms,
            "bundles": self.bundles().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "policies": {
                "retention_ms": self.policies.retention_ms,
                "retention_bytes": self.policies.retention_bytes,
                "auto_topic_creation": self.policies.auto_topic_creation,
                "write_quorum": self.policies.write_quorum,
                "ack_quorum": self.policies.ack_quorum,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bundle_bounds: Vec<u32>) -> NamespaceRecord {
        NamespaceRecord { created_ms: 1, bundle_bounds, policies: NamespacePolicies::default() }
    }

    #[test]
    fn even_bundles_cover_every_hash_exactly_once() {
        for count in [1, 2, 3, 4, 7, 4096] {
            let record = record(NamespaceRecord::even_bounds(count));
            assert_eq!(record.validate(), Ok(()), "{count}");
            let bundles = record.bundles();
            assert_eq!(bundles.len(), count as usize);
            assert_eq!((bundles[0].first, bundles[bundles.len() - 1].last), (0, u32::MAX));
            for pair in bundles.windows(2) {
                assert_eq!(pair[0].last + 1, pair[1].first);
            }
            for bundle in bundles {
                assert_eq!(record.bundle_of(bundle.first), bundle);
                assert_eq!(record.bundle_of(bundle.last), bundle);
            }
        }
    }

    #[test]
    fn bounds_that_leave_a_hash_without_a_bundle_are_refused() {
        for bounds in [vec![], vec![1], vec![0, 0], vec![0, 5, 4]] {
            assert!(record(bounds.clone()).validate().is_err(), "{bounds:?}");
        }
    }

    #[test]
    fn quorums_that_cannot_be_met_are_refused() {
        let mut policies = record(vec![0]);
        policies.policies.ack_quorum = Some(0);
        assert!(policies.validate().is_err());
        policies.policies.ack_quorum = Some(3);
        assert_eq!(policies.validate(), Ok(()));
        policies.policies.write_quorum = Some(2);
        assert!(policies.validate().is_err());
    }
}
