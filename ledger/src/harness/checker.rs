//! The history checker: hears what owners did and were told, what bookies made durable and what
//! was written to the metadata, and says which promise was broken first. One file for each promise:
//! - `order`: entries are confirmed in order, each once;
//! - `copies`: what is confirmed, and what is closed, has its copies;
//! - `record`: a ledger moves forward and keeps its end;
//! - `fence`: nothing that is begun after a ledger's fence is confirmed;
//! - `repair`: copies move whole, and none is dropped that is to be kept;
//! - `progress`: nothing waits for what it doesn't need;
//! - `content`: what was confirmed can be read, what was refused is not there.

use std::collections::{BTreeMap, BTreeSet};

use geminga_proto::id::{BookieId, EntryId, Lac, LedgerId};

use crate::harness::checker::fence::Fences;
use crate::harness::checker::progress::Progress;
use crate::metadata::LedgerMetadata;

mod content;
mod copies;
mod fence;
mod order;
mod progress;
mod record;
mod repair;

/// One entry that an owner appended.
#[derive(Debug, Clone)]
struct Append {
    content: u64,
    begun: u64,
    confirmed: Option<u64>,
    /// Its owner was told that it is not stored.
    refused: bool,
}

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Checker {
    appends: BTreeMap<(LedgerId, EntryId), Append>,
    copies: BTreeSet<(BookieId, LedgerId, EntryId)>,
    records: BTreeMap<LedgerId, LedgerMetadata>,
    confirmed: BTreeMap<LedgerId, Lac>,
    fences: Fences,
    progress: Progress,
    deleted: BTreeSet<LedgerId>,
    /// How many entries were confirmed.
    pub confirmed_entries: u64,
    /// The first promise that was broken.
    pub violation: Option<String>,
}

impl Checker {
    /// A promise was broken.
    pub fn broken(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(what());
        }
    }
}
