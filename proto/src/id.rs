//! Newtypes for every id and offset. Numbers stay in the signed 63-bit range, because Pulsar's
//! clients read them as signed.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is not a number in range.
    #[error("{text:?} is not a {what}: expected a number from 0 to 2^63-1")]
    NotANumber {
        /// What was expected.
        what: &'static str,
        /// What was found.
        text: String,
    },
    /// The text is not a node name.
    #[error("{text:?} is not a {what}: use 1 to 64 letters, digits, '-', '_' or '.'")]
    NotAName {
        /// What was expected.
        what: &'static str,
        /// What was found.
        text: String,
    },
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The highest id that Pulsar's clients can read.
            pub const MAX: Self = Self(i64::MAX as u64);

            /// The id after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }

            /// The id before this one, if there is one.
            #[must_use]
            pub const fn previous(self) -> Option<Self> {
                match self.0.checked_sub(1) {
                    Some(value) => Some(Self(value)),
                    None => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, out)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                match text.parse::<u64>() {
                    Ok(value) if value <= Self::MAX.0 => Ok(Self(value)),
                    _ => {
                        let text = text.chars().take(80).collect();
                        Err(IdError::NotANumber { what: $what, text })
                    }
                }
            }
        }
    };
}

number_id!(
    /// A ledger: a write-once sequence of entries.
    LedgerId,
    "ledger id"
);
number_id!(
    /// An entry's place in its ledger, from 0 without gaps.
    EntryId,
    "entry id"
);
number_id!(
    /// A segment file of a bookie's log. Never used twice.
    SegmentId,
    "segment id"
);
number_id!(
    /// A managed ledger: the ordered list of ledgers behind one shard of a topic.
    ManagedLedgerId,
    "managed ledger id"
);
number_id!(
    /// One life of a topic, from creation to deletion. Never reused.
    TopicIncarnation,
    "topic incarnation"
);
number_id!(
    /// Counts messages (not entries) from the topic's start.
    MessageIndex,
    "message index"
);
number_id!(
    /// Rises with each change of owner of what it guards.
    Epoch,
    "epoch"
);
number_id!(
    /// A producer within one client stream.
    ProducerId,
    "producer id"
);
number_id!(
    /// A consumer within one client stream.
    ConsumerId,
    "consumer id"
);

/// Random number that goes with every add, so that entries of a deleted ledger whose id were
/// ever reused could not be taken for live ones. Never 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LedgerToken(pub u64);

/// Last-add-confirmed: every entry up to it has its ack quorum. `None` while the ledger has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lac(pub Option<EntryId>);

impl Lac {
    /// Nothing is confirmed.
    pub const NONE: Self = Self(None);

    /// The entry that follows.
    #[must_use]
    pub fn next_entry(self) -> EntryId {
        self.0.map_or(EntryId(0), EntryId::next)
    }

    /// True if `entry` is confirmed.
    #[must_use]
    pub fn covers(self, entry: EntryId) -> bool {
        self.0.is_some_and(|last| entry <= last)
    }

    /// The form used on wires and disks: -1 for none.
    #[must_use]
    pub fn to_wire(self) -> i64 {
        self.0.map_or(-1, |entry| i64::try_from(entry.0).unwrap_or(i64::MAX))
    }

    /// Reads the form used on wires and disks; any negative number means none.
    #[must_use]
    pub fn from_wire(value: i64) -> Self {
        Self(u64::try_from(value).ok().map(EntryId))
    }
}

impl fmt::Display for Lac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_wire().fmt(out)
    }
}

/// An entry of a topic. Ordered as the topic is, since a managed ledger's ledger ids rise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The ledger.
    pub ledger: LedgerId,
    /// The entry in it.
    pub entry: EntryId,
}

impl Position {
    /// The position of `entry` in `ledger`.
    #[must_use]
    pub const fn new(ledger: LedgerId, entry: EntryId) -> Self {
        Self { ledger, entry }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.ledger, self.entry)
    }
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks that `text` is 1 to 64 letters, digits, `-`, `_` or `.`.
            ///
            /// # Errors
            /// [`IdError::NotAName`] if it is not.
            pub fn new(text: &str) -> Result<Self, IdError> {
                let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
                let dots_only = text.bytes().all(|byte| byte == b'.');
                if (1..=64).contains(&text.len()) && !dots_only && text.bytes().all(allowed) {
                    Ok(Self(text.into()))
                } else {
                    Err(IdError::NotAName { what: $what, text: text.chars().take(80).collect() })
                }
            }

            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }
    };
}

name_id!(
    /// A storage node.
    BookieId,
    "bookie id"
);
name_id!(
    /// A broker.
    BrokerId,
    "broker id"
);
name_id!(
    /// A cluster: random, made by its first start.
    ClusterId,
    "cluster id"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_beyond_the_signed_range_is_refused() {
        assert_eq!("9223372036854775807".parse(), Ok(LedgerId::MAX));
        assert!("9223372036854775808".parse::<LedgerId>().is_err());
        assert!("-1".parse::<EntryId>().is_err());
    }

    #[test]
    fn names_that_could_leave_their_directory_or_key_are_refused() {
        for text in ["", ".", "..", "a/b", "a b", "é", &"x".repeat(65)] {
            assert!(BookieId::new(text).is_err(), "{text:?}");
        }
        assert_eq!(
            BookieId::new("bookie-1.rack_2").map(|id| id.to_string()).as_deref(),
            Ok("bookie-1.rack_2")
        );
    }

    #[test]
    fn an_empty_ledger_has_no_last_add_confirmed() {
        assert_eq!(Lac::NONE.to_wire(), -1);
        assert_eq!(Lac::from_wire(-1), Lac::NONE);
        assert_eq!(Lac::NONE.next_entry(), EntryId(0));
        assert!(!Lac::NONE.covers(EntryId(0)));
        assert!(Lac::from_wire(3).covers(EntryId(3)));
        assert_eq!(Lac::from_wire(3).next_entry(), EntryId(4));
    }
}
