//! [`AckTracker`]: which acknowledgements wait to be sent, and which have no receipt yet. No I/O,
//! no clock.
//!
//! Every group is sent with a request id, so that the client learns when it is durable; a group
//! without a receipt when the session ends has an unknown outcome and is sent again, which is
//! harmless, since acknowledging twice is acknowledging.
//!
//! Invariants: an acknowledgement that was taken is waiting, under way, or was answered; groups
//! are sent again in their first order; both sides are bounded ([`AckTracker::has_room`]).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;
use geminga_proto::id::Position;
use geminga_proto::v1;

use crate::message::MessageId;

/// Entries of one group.
const GROUP_ENTRIES: usize = 1000;
/// Bytes of batch indexes after which a group is full.
const GROUP_INDEX_BYTES: usize = 64 * 1024;
/// Groups without a receipt.
const GROUPS_UNDER_WAY: usize = 16;

/// What of an entry is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Acked {
    Whole,
    Indexes { bits: Vec<u8>, set: u32, of: u32 },
}

/// One Acknowledge frame, as it is sent and sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub request_id: u64,
    pub cumulative: bool,
    pub positions: Vec<v1::AckPosition>,
}

#[derive(Debug)]
struct UnderWay<W> {
    group: Group,
    waiters: Vec<W>,
}

/// Acknowledgements on their way. `W` hears what became of a group.
#[derive(Debug)]
pub(super) struct AckTracker<W> {
    waiting: BTreeMap<Position, Acked>,
    index_bytes: usize,
    waiters: Vec<W>,
    cumulative: Option<MessageId>,
    cumulative_waiters: Vec<W>,
    under_way: BTreeMap<u64, UnderWay<W>>,
    next_request: u64,
}

/// Bits 0..=`last` set.
fn bits_up_to(last: u32) -> Vec<u8> {
    let mut bits = vec![0xff; last as usize / 8 + 1];
    if let Some(byte) = bits.last_mut() {
        *byte = 0xff >> (7 - last % 8);
    }
    bits
}

fn position(at: Position, acked_indexes: Vec<u8>) -> v1::AckPosition {
    let acked_indexes = Bytes::from(acked_indexes);
    v1::AckPosition { ledger_id: at.ledger.0, entry_id: at.entry.0, acked_indexes }
}

impl<W> AckTracker<W> {
    pub(super) fn new() -> Self {
        Self {
            waiting: BTreeMap::new(),
            index_bytes: 0,
            waiters: Vec::new(),
            cumulative: None,
            cumulative_waiters: Vec::new(),
            under_way: BTreeMap::new(),
            next_request: 1,
        }
    }

    /// True if a group could be filled further.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < GROUP_ENTRIES && self.index_bytes < GROUP_INDEX_BYTES
    }

    /// True if something waits to be sent.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || self.cumulative.is_some()
    }

    /// True if nothing waits and every group has its receipt.
    pub(super) fn is_settled(&self) -> bool {
        !self.is_waiting() && self.under_way.is_empty()
    }

    /// True if a group was sent and has no receipt.
    pub(super) fn is_receipt_due(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// True if someone waits for the receipt of what has not been sent.
    pub(super) fn is_urgent(&self) -> bool {
        !self.waiters.is_empty() || !self.cumulative_waiters.is_empty()
    }

    /// Takes the acknowledgement of one message.
    pub(super) fn ack(&mut self, id: MessageId, waiter: Option<W>) {
        self.waiters.extend(waiter);
        let whole = id.batch_index.is_none() || id.batch_size <= 1;
        let index = id.batch_index.unwrap_or(0);
        let (byte, mask) = (index as usize / 8, 1_u8 << (index % 8));
        match self.waiting.entry(id.position) {
            Entry::Vacant(vacant) if whole => {
                vacant.insert(Acked::Whole);
            }
            Entry::Vacant(vacant) => {
                let bytes = id.batch_size.max(index.saturating_add(1)).div_ceil(8) as usize;
                let mut bits = vec![0; bytes];
                if let Some(slot) = bits.get_mut(byte) {
                    *slot = mask;
                }
                self.index_bytes += bytes;
                vacant.insert(Acked::Indexes { bits, set: 1, of: id.batch_size });
            }
            Entry::Occupied(mut occupied) => {
                let done = match occupied.get_mut() {
                    Acked::Whole => return,
                    Acked::Indexes { .. } if whole => true,
                    Acked::Indexes { bits, set, of } => {
                        if let Some(slot) = bits.get_mut(byte)
                            && *slot & mask == 0
                        {
                            *slot |= mask;
                            *set += 1;
                        }
                        *set >= *of
                    }
                };
                if done && let Acked::Indexes { bits, .. } = occupied.insert(Acked::Whole) {
                    self.index_bytes -= bits.len();
                }
            }
        }
    }

    /// Takes the acknowledgement of everything up to a message.
    pub(super) fn ack_cumulative(&mut self, id: MessageId, waiter: Option<W>) {
        self.cumulative_waiters.extend(waiter);
        self.cumulative = self.cumulative.max(Some(id));
    }

    /// Makes groups of what waits, as far as groups may be under way. Each is to be sent.
    pub(super) fn take_groups(&mut self) -> Vec<Group> {
        let mut groups = Vec::new();
        if self.under_way.len() < GROUPS_UNDER_WAY
            && let Some(id) = self.cumulative.take()
        {
            let last = id.batch_index.filter(|index| index.saturating_add(1) < id.batch_size);
            let positions = vec![position(id.position, last.map_or_else(Vec::new, bits_up_to))];
            let waiters = std::mem::take(&mut self.cumulative_waiters);
            groups.push(self.send(true, positions, waiters));
        }
        if self.under_way.len() < GROUPS_UNDER_WAY && !self.waiting.is_empty() {
            let waiting = std::mem::take(&mut self.waiting);
            self.index_bytes = 0;
            let positions = waiting.into_iter().map(|(at, acked)| match acked {
                Acked::Whole => position(at, Vec::new()),
                Acked::Indexes { bits, .. } => position(at, bits),
            });
            let waiters = std::mem::take(&mut self.waiters);
            groups.push(self.send(false, positions.collect(), waiters));
        }
        groups
    }

    fn send(
        &mut self,
        cumulative: bool,
        positions: Vec<v1::AckPosition>,
        waiters: Vec<W>,
    ) -> Group {
        let request_id = self.next_request;
        self.next_request += 1;
        let group = Group { request_id, cumulative, positions };
        self.under_way.insert(request_id, UnderWay { group: group.clone(), waiters });
        group
    }

    /// The groups without a receipt, to be sent again in a new session.
    pub(super) fn groups_to_resend(&self) -> Vec<Group> {
        self.under_way.values().map(|under_way| under_way.group.clone()).collect()
    }

    /// A group is answered. `None` if it was already.
    pub(super) fn answered(&mut self, request_id: u64) -> Option<(Group, Vec<W>)> {
        let under_way = self.under_way.remove(&request_id)?;
        Some((under_way.group, under_way.waiters))
    }

    /// Gives everything up; answers who waits.
    pub(super) fn drain(&mut self) -> Vec<W> {
        self.waiting.clear();
        self.index_bytes = 0;
        self.cumulative = None;
        let mut waiters = std::mem::take(&mut self.waiters);
        waiters.append(&mut self.cumulative_waiters);
        for under_way in std::mem::take(&mut self.under_way).into_values() {
            waiters.extend(under_way.waiters);
        }
        waiters
    }
}

#[cfg(test)]
mod tests;
