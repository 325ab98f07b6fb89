//! [`ResendQueue`]: a producer's entries that have no receipt yet, in order. It decides what is
//! sent when, within the broker's credit, and what is sent again after a reconnect. No I/O, no
//! clock.
//!
//! Invariants:
//! - Entries are sent in the order of their slots; one that is still being encoded holds the
//!   later ones back.
//! - A receipt counts only for the oldest entry that was sent in this session; an older sequence
//!   id is a duplicate and ignored, a newer one means that the session can't be trusted.
//! - A refusal counts for any entry that was sent: it comes as soon as it is decided, while what
//!   was sent before may still wait for its disks.
//! - Bytes outstanding in a session never exceed its credit, except for one entry alone.
//! - Nothing leaves without its completion being handed out.

use std::collections::VecDeque;

use bytes::Bytes;
use geminga_proto::env::Monotonic;

/// Names a slot for as long as it is queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotId(u64);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// Another thread is encoding it.
    Encoding,
    /// Not sent in this session.
    Ready(Bytes),
    /// Sent in this session.
    Sent(Bytes),
    /// Its messages were failed already. The bytes it still holds of the session's credit come
    /// back with its receipt.
    Abandoned { sent_bytes: u64 },
}

#[derive(Debug)]
struct Slot<C> {
    first_sequence: u64,
    deadline: Option<Monotonic>,
    stage: Stage,
    completion: Option<C>,
}

/// What a receipt or refusal means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answered<C> {
    /// The oldest entry is answered.
    Entry(C),
    /// Nobody waits for it any more, or it was answered before.
    Ignored,
    /// It can't be: the session must be given up.
    OutOfOrder {
        /// Sequence id that is due, if any.
        expected: Option<u64>,
    },
}

/// Entries without a receipt. `C` hears what becomes of one.
#[derive(Debug)]
pub(crate) struct ResendQueue<C> {
    slots: VecDeque<Slot<C>>,
    /// Id of the first slot.
    base: u64,
    /// Slots from the front that this session is done sending.
    sent: usize,
    credit_bytes: u64,
    outstanding_bytes: u64,
}

impl<C> ResendQueue<C> {
    pub(crate) fn new() -> Self {
        Self { slots: VecDeque::new(), base: 0, sent: 0, credit_bytes: 0, outstanding_bytes: 0 }
    }

    /// True if no entry waits for anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.iter().all(|slot| slot.completion.is_none())
    }

    /// True if the broker owes an answer in this session.
    pub(crate) fn is_answer_due(&self) -> bool {
        self.outstanding_bytes > 0
    }

    /// The newest entry that somebody waits for and `which` picks.
    pub(crate) fn last_waiting(&self, which: impl Fn(&C) -> bool) -> Option<&C> {
        let waiting = self.slots.iter().rev().filter_map(|slot| slot.completion.as_ref());
        waiting.into_iter().find(|completion| which(completion))
    }

    /// Takes the next place in the order, to be filled once the entry is encoded.
    pub(crate) fn reserve(
        &mut self,
        first_sequence: u64,
        deadline: Option<Monotonic>,
        completion: C,
    ) -> SlotId {
        let id = SlotId(self.base + self.slots.len() as u64);
        let completion = Some(completion);
        self.slots.push_back(Slot { first_sequence, deadline, stage: Stage::Encoding, completion });
        id
    }

    fn slot(&mut self, id: SlotId) -> Option<&mut Slot<C>> {
        let at = usize::try_from(id.0.checked_sub(self.base)?).ok()?;
        self.slots.get_mut(at)
    }

    /// Puts the encoded entry in its place.
    pub(crate) fn fill(&mut self, id: SlotId, entry: Bytes) {
        if let Some(slot) = self.slot(id)
            && slot.stage == Stage::Encoding
        {
            slot.stage = Stage::Ready(entry);
        }
    }

    /// Gives a place up whose entry can't be encoded.
    pub(crate) fn give_up(&mut self, id: SlotId) -> Option<C> {
        let slot = self.slot(id)?;
        slot.stage = Stage::Abandoned { sent_bytes: 0 };
        let completion = slot.completion.take();
        self.drop_leading();
        completion
    }

    /// Removes what nobody waits for and no answer is due for.
    fn drop_leading(&mut self) {
        while let Some(Slot { stage: Stage::Abandoned { sent_bytes: 0 }, .. }) = self.slots.front()
        {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) -> Option<Slot<C>> {
        let slot = self.slots.pop_front()?;
        self.base += 1;
        self.sent = self.sent.saturating_sub(1);
        Some(slot)
    }

    /// A session begins: everything is to be sent again, within this credit.
    pub(crate) fn session_opened(&mut self, credit_bytes: u64) {
        self.session_ended();
        self.credit_bytes = credit_bytes;
    }

    /// The session is over: nothing is sent until the next one.
    pub(crate) fn session_ended(&mut self) {
        self.sent = 0;
        self.credit_bytes = 0;
        self.outstanding_bytes = 0;
        for slot in &mut self.slots {
            match &mut slot.stage {
                Stage::Sent(entry) => slot.stage = Stage::Ready(std::mem::take(entry)),
                Stage::Abandoned { sent_bytes } => *sent_bytes = 0,
                Stage::Encoding | Stage::Ready(_) => {}
            }
        }
        self.drop_leading();
    }

    /// The next entry to send, if credit and order allow one: its sequence id and bytes.
    pub(crate) fn next_to_send(&mut self) -> Option<(u64, Bytes)> {
        loop {
            let slot = self.slots.get_mut(self.sent)?;
            match &mut slot.stage {
                Stage::Abandoned { .. } | Stage::Sent(_) => self.sent += 1,
                Stage::Encoding => return None,
                Stage::Ready(entry) => {
                    let bytes = entry.len() as u64;
                    let outstanding = self.outstanding_bytes.saturating_add(bytes);
                    // Without credit there is no session; alone, an entry may exceed it, so that
                    // the broker gets to say why it refuses it.
                    let alone = self.outstanding_bytes == 0 && self.credit_bytes > 0;
                    if outstanding > self.credit_bytes && !alone {
                        return None;
                    }
                    self.outstanding_bytes = outstanding;
                    let entry = entry.clone();
                    slot.stage = Stage::Sent(entry.clone());
                    self.sent += 1;
                    return Some((slot.first_sequence, entry));
                }
            }
        }
    }

    /// The broker has refused an entry.
    pub(crate) fn refused(&mut self, sequence: u64) -> Answered<C> {
        let at = self.slots.partition_point(|slot| slot.first_sequence < sequence);
        let behind = at > 0 && at < self.sent;
        let slot = self.slots.get_mut(at).filter(|slot| behind && slot.first_sequence == sequence);
        let Some(slot) = slot else { return self.answered(sequence) };
        let bytes = match &slot.stage {
            Stage::Sent(entry) => entry.len() as u64,
            // It may be refused once only, and what gave it up has been told.
            Stage::Abandoned { sent_bytes } => *sent_bytes,
            Stage::Encoding | Stage::Ready(_) => return Answered::Ignored,
        };
        slot.stage = Stage::Abandoned { sent_bytes: 0 };
        self.outstanding_bytes = self.outstanding_bytes.saturating_sub(bytes);
        slot.completion.take().map_or(Answered::Ignored, Answered::Entry)
    }

    /// The broker has answered for the oldest entry: stored, or refused.
    pub(crate) fn answered(&mut self, sequence: u64) -> Answered<C> {
        // Slots that were given up before they were sent take no part in the order.
        while self.sent > 0
            && matches!(
                self.slots.front(),
                Some(Slot { stage: Stage::Abandoned { sent_bytes: 0 }, .. })
            )
        {
            self.pop_front();
        }
        let Some(front) = self.slots.front() else {
            return Answered::Ignored;
        };
        if sequence < front.first_sequence {
            return Answered::Ignored;
        }
        let expected = Some(front.first_sequence);
        if self.sent == 0 || sequence > front.first_sequence {
            return Answered::OutOfOrder { expected };
        }
        let bytes = match &front.stage {
            Stage::Sent(entry) => entry.len() as u64,
            Stage::Abandoned { sent_bytes } => *sent_bytes,
            Stage::Encoding | Stage::Ready(_) => return Answered::OutOfOrder { expected },
        };
        self.outstanding_bytes = self.outstanding_bytes.saturating_sub(bytes);
        let completion = self.pop_front().and_then(|slot| slot.completion);
        self.drop_leading();
        completion.map_or(Answered::Ignored, Answered::Entry)
    }

    /// The moment at which the oldest entry that somebody waits for is overdue.
    pub(crate) fn next_deadline(&self) -> Option<Monotonic> {
        self.slots.iter().find(|slot| slot.completion.is_some()).and_then(|slot| slot.deadline)
    }

    /// Gives up entries whose deadline has passed; oldest first.
    pub(crate) fn expire(&mut self, now: Monotonic) -> Vec<C> {
        let mut expired = Vec::new();
        for slot in &mut self.slots {
            if slot.completion.is_none() {
                continue;
            }
            if slot.deadline.is_none_or(|deadline| deadline > now) {
                break;
            }
            let sent_bytes = match &slot.stage {
                Stage::Sent(entry) => entry.len() as u64,
                Stage::Encoding | Stage::Ready(_) | Stage::Abandoned { .. } => 0,
            };
            slot.stage = Stage::Abandoned { sent_bytes };
            expired.extend(slot.completion.take());
        }
        self.drop_leading();
        expired
    }

    /// Gives up everything; oldest first.
    pub(crate) fn drain(&mut self) -> Vec<C> {
        self.base += self.slots.len() as u64;
        self.sent = 0;
        self.outstanding_bytes = 0;
        self.slots.drain(..).filter_map(|slot| slot.completion).collect()
    }
}

#[cfg(test)]
mod tests;
