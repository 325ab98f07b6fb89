//! What is to be repaired of a ledger, and who is at it.
//!
//! The *claim* is what safety depends on: a bookie that a claim of a ledger names keeps all that it
//! has of it, and a worker whose claim is gone commits nothing (see ARCHITECTURE.md). So whoever
//! changes the record for another reason leaves the claim as it is.

use geminga_proto::id::{BookieId, EntryId};
use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::{Record, in_range, parse};

/// Why a ledger needs repair.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RepairReason {
    /// A bookie that has copies is gone.
    Missing(BookieId),
    /// A bookie that has copies is to be taken away, or is gone for good.
    Draining(BookieId),
    /// A bookie can't read some of its copies.
    Damaged {
        /// The bookie.
        bookie: BookieId,
        /// The first entry that it can't read, or that lies between such.
        first: EntryId,
        /// The last one.
        last: EntryId,
    },
    /// Entries may have fewer copies than the write quorum, as the ledger's record says.
    AckQuorumOnly,
    /// All copies of some entries are in one zone.
    Placement,
}

impl RepairReason {
    fn is_damage_of(&self, bookie: &BookieId) -> bool {
        matches!(self, Self::Damaged { bookie: of, .. } if of == bookie)
    }

    fn to_message(&self) -> pb::RepairReason {
        use pb::repair_reason::Reason;
        let reason = match self {
            Self::Missing(bookie) => Reason::MissingBookieId(bookie.to_string()),
            Self::Draining(bookie) => Reason::DrainingBookieId(bookie.to_string()),
            Self::Damaged { bookie, first, last } => Reason::Damaged(pb::DamagedEntries {
                bookie_id: bookie.to_string(),
                first_entry_id: first.0,
                last_entry_id: last.0,
            }),
            Self::AckQuorumOnly => Reason::AckQuorumOnly(true),
            Self::Placement => Reason::Placement(true),
        };
        pb::RepairReason { reason: Some(reason) }
    }

    fn from_message(message: pb::RepairReason) -> Result<Self, String> {
        use pb::repair_reason::Reason;
        Ok(match message.reason.ok_or("a reason is of no known kind")? {
            Reason::MissingBookieId(bookie) => Self::Missing(parse("missing_bookie_id", &bookie)?),
            Reason::DrainingBookieId(bookie) => {
                Self::Draining(parse("draining_bookie_id", &bookie)?)
            }
            Reason::Damaged(damaged) => Self::Damaged {
                bookie: parse("bookie_id", &damaged.bookie_id)?,
                first: EntryId(damaged.first_entry_id),
                last: EntryId(damaged.last_entry_id),
            },
            Reason::AckQuorumOnly(_) => Self::AckQuorumOnly,
            Reason::Placement(_) => Self::Placement,
        })
    }
}

/// For people.
impl std::fmt::Display for RepairReason {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(bookie) => write!(out, "bookie {bookie} is missing"),
            Self::Draining(bookie) => write!(out, "bookie {bookie} is being drained"),
            Self::Damaged { bookie, first, last } => {
                write!(out, "entries {first} to {last} are damaged on bookie {bookie}")
            }
            Self::AckQuorumOnly => out.write_str("entries may lack copies"),
            Self::Placement => out.write_str("copies are in one zone only"),
        }
    }
}

/// Which worker is at it, and where it sends copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairClaim {
    /// Random, of one attempt. Not 0.
    pub id: u64,
    /// The worker's name.
    pub worker: String,
    /// Bookies that copies are sent to although the ledger's record doesn't name them for these
    /// entries. Sorted, each once.
    pub targets: Vec<BookieId>,
    /// When it was made.
    pub claimed_ms: u64,
}

/// Below `keys::repair`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairRecord {
    /// Sorted, each once; at least one.
    pub reasons: Vec<RepairReason>,
    /// When it was first wanted.
    pub queued_ms: u64,
    /// Attempts that ended without everything repaired.
    pub attempts: u32,
    /// What was in the way of the last one; empty if there was none.
    pub last_error: String,
    /// The worker that is at it.
    pub claim: Option<RepairClaim>,
}

impl RepairRecord {
    /// Most reasons. What is left out is found again when those are dealt with.
    pub const MAX_REASONS: usize = 128;
    /// Most runs of damaged entries of one bookie that are kept apart.
    pub const MAX_RUNS: usize = 16;
    /// Most bookies that a claim names.
    pub const MAX_TARGETS: usize = 128;
    /// Most bytes of the error that is kept.
    pub const MAX_ERROR_BYTES: usize = 500;

    /// A ledger that is to be repaired.
    #[must_use]
    pub fn new(reasons: &[RepairReason], queued_ms: u64) -> Self {
        let empty = Vec::new();
        let error = String::new();
        let mut record =
            Self { reasons: empty, queued_ms, attempts: 0, last_error: error, claim: None };
        record.add(reasons);
        record
    }

    /// Adds reasons; true if that changed anything. Runs of damaged entries that meet become one,
    /// and so do all of a bookie that has too many.
    pub fn add(&mut self, reasons: &[RepairReason]) -> bool {
        let before = self.reasons.clone();
        for reason in reasons {
            self.add_one(reason.clone());
        }
        self.reasons.sort_unstable();
        self.reasons != before
    }

    fn add_one(&mut self, reason: RepairReason) {
        if self.reasons.contains(&reason) {
            return;
        }
        let RepairReason::Damaged { bookie, mut first, mut last } = reason else {
            if self.reasons.len() < Self::MAX_REASONS {
                self.reasons.push(reason);
            }
            return;
        };
        let of_bookie = |known: &RepairReason| known.is_damage_of(&bookie);
        let runs = self.reasons.iter().filter(|known| of_bookie(known)).count();
        let all = runs >= Self::MAX_RUNS || self.reasons.len() >= Self::MAX_REASONS;
        // Runs that it joins may join each other, so those before are looked at again.
        loop {
            let meets = |known: &RepairReason| match known {
                RepairReason::Damaged { first: from, last: to, .. } if of_bookie(known) => {
                    all || (from.0 <= last.0.saturating_add(1) && first.0 <= to.0.saturating_add(1))
                }
                _ => false,
            };
            let Some(at) = self.reasons.iter().position(meets) else { break };
            if let RepairReason::Damaged { first: from, last: to, .. } = self.reasons.remove(at) {
                (first, last) = (first.min(from), last.max(to));
            }
        }
        if self.reasons.len() < Self::MAX_REASONS {
            self.reasons.push(RepairReason::Damaged { bookie, first, last });
        }
    }

    /// Whether copies may be on their way to a bookie that the ledger's record doesn't name: it
    /// must keep what it has of the ledger.
    #[must_use]
    pub fn claims(&self, bookie: &BookieId) -> bool {
        self.claim.as_ref().is_some_and(|claim| claim.targets.contains(bookie))
    }

    /// Notes what was in the way of an attempt.
    pub fn failed(&mut self, error: &str) {
        self.attempts = self.attempts.saturating_add(1);
        let mut end = error.len().min(Self::MAX_ERROR_BYTES);
        while !error.is_char_boundary(end) {
            end -= 1;
        }
        self.last_error = error.get(..end).unwrap_or_default().to_owned();
    }
}

fn rises<T: Ord>(list: &[T]) -> bool {
    list.is_sorted_by(|left, right| left < right)
}

impl Record for RepairRecord {
    const KIND: &'static str = "repair";
    const VERSION: u32 = 1;
    type Message = pb::RepairRecord;

    fn check(&self) -> Result<(), String> {
        if self.reasons.is_empty() || self.reasons.len() > Self::MAX_REASONS {
            return Err(format!("not between 1 and {} reasons", Self::MAX_REASONS));
        }
        if !rises(&self.reasons) {
            return Err("the reasons are not sorted".to_owned());
        }
        for reason in &self.reasons {
            if let RepairReason::Damaged { first, last, .. } = reason {
                in_range("last_entry_id", last.0)?;
                if first > last {
                    return Err("damaged entries end before they start".to_owned());
                }
            }
        }
        if self.last_error.len() > Self::MAX_ERROR_BYTES {
            return Err(format!("last_error has more than {} bytes", Self::MAX_ERROR_BYTES));
        }
        let Some(claim) = &self.claim else { return Ok(()) };
        if claim.id == 0 {
            return Err("the claim's id is 0".to_owned());
        }
        if claim.targets.len() > Self::MAX_TARGETS || !rises(&claim.targets) {
            return Err("the claim's targets are too many or not sorted".to_owned());
        }
        Ok(())
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::RepairRecord {
        let claim = |claim: &RepairClaim| pb::RepairClaim {
            id: claim.id,
            worker: claim.worker.clone(),
            target_bookie_ids: claim.targets.iter().map(ToString::to_string).collect(),
            claimed_ms: claim.claimed_ms,
        };
        pb::RepairRecord {
            stamp: Some(stamp),
            reasons: self.reasons.iter().map(RepairReason::to_message).collect(),
            queued_ms: self.queued_ms,
            attempts: self.attempts,
            last_error: self.last_error.clone(),
            claim: self.claim.as_ref().map(claim),
        }
    }

    fn from_message(message: pb::RepairRecord) -> Result<Self, String> {
        let reasons: Result<Vec<_>, String> =
            message.reasons.into_iter().map(RepairReason::from_message).collect();
        let claim = |claim: pb::RepairClaim| {
            let names = claim.target_bookie_ids.iter();
            let targets: Result<Vec<_>, String> =
                names.map(|bookie| parse("target_bookie_ids", bookie)).collect();
            let (id, worker, claimed_ms) = (claim.id, claim.worker, claim.claimed_ms);
            Ok::<_, String>(RepairClaim { id, worker, targets: targets?, claimed_ms })
        };
        Ok(Self {
            reasons: reasons?,
            queued_ms: message.queued_ms,
            attempts: message.attempts,
            last_error: message.last_error,
            claim: message.claim.map(claim).transpose()?,
        })
    }

    fn to_json(&self) -> Value {
        let claim = |claim: &RepairClaim| {
            let targets: Vec<&str> = claim.targets.iter().map(BookieId::as_str).collect();
            json!({ "worker": claim.worker, "targets": targets, "claimed_ms": claim.claimed_ms })
        };
        let reasons: Vec<String> = self.reasons.iter().map(ToString::to_string).collect();
        json!({
            "reasons": reasons,
            "queued_ms": self.queued_ms,
            "attempts": self.attempts,
            "last_error": self.last_error,
            "claim": self.claim.as_ref().map(claim),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bookie(name: &str) -> BookieId {
        BookieId::new(name).expect("valid")
    }

    fn damaged(name: &str, first: u64, last: u64) -> RepairReason {
        RepairReason::Damaged { bookie: bookie(name), first: EntryId(first), last: EntryId(last) }
    }

    #[test]
    fn runs_of_damaged_entries_that_meet_become_one() {
        let mut record = RepairRecord::new(&[damaged("a", 1, 3), damaged("a", 6, 9)], 1);
        assert!(!record.add(&[damaged("a", 1, 3)]), "it is known");
        assert!(record.add(&[damaged("a", 4, 5), damaged("b", 2, 2)]));
        assert_eq!(record.reasons, [damaged("a", 1, 9), damaged("b", 2, 2)]);
        assert!(!record.add(&[damaged("a", 2, 4)]), "it is contained");
    }

    #[test]
    fn an_error_is_cut_between_characters() {
        let mut record = RepairRecord::new(&[RepairReason::Placement], 1);
        record.failed(&"é".repeat(RepairRecord::MAX_ERROR_BYTES));
        assert_eq!(record.last_error.len(), RepairRecord::MAX_ERROR_BYTES);
        assert_eq!((record.attempts, record.validate()), (1, Ok(())));
    }

    proptest! {
        /// Whatever is reported stays covered, and the record stays valid.
        #[test]
        fn no_damaged_entry_is_forgotten(
            runs in proptest::collection::vec((0usize..3, 0u64..500, 0u64..5), 1..200),
        ) {
            let names = ["a", "b", "c"];
            let mut record = RepairRecord::new(&[RepairReason::AckQuorumOnly], 1);
            for (name, first, more) in &runs {
                record.add(&[damaged(names[*name], *first, first + more)]);
                prop_assert_eq!(record.validate(), Ok(()));
            }
            for (name, from, more) in runs {
                let covered = record.reasons.iter().any(|reason| match reason {
                    RepairReason::Damaged { bookie, first, last } => {
                        bookie.as_str() == names[name] && first.0 <= from && from + more <= last.0
                    }
                    _ => false,
                });
                prop_assert!(covered, "{:?} of {} in {:?}", from, names[name], record.reasons);
            }
        }
    }
}
