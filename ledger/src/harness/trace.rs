//! A digest of what happened, to compare two runs of one seed.

use crate::harness::bookie::Answer;
use crate::harness::sim::Event;

/// A digest of everything that happened.
#[derive(Debug)]
pub(super) struct Trace {
    digest: u64,
    pub print: bool,
}

impl Trace {
    pub(super) fn new(seed: u64) -> Self {
        Self { digest: seed, print: false }
    }

    pub(super) fn note(&mut self, words: [u64; 4]) {
        for word in words {
            // FNV-1a, a word at a time.
            self.digest = (self.digest ^ word).wrapping_mul(0x0100_0000_01b3);
            self.digest ^= self.digest >> 29;
        }
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }
}

/// A number that tells events apart, for the trace.
pub(super) fn weight(event: &Event) -> u64 {
    match event {
        Event::Arrive { bookie, request, .. } => 1 + ((*bookie + (*request << 8)) << 4) as u64,
        Event::Sync { bookie, .. } => 2 + (*bookie << 4) as u64,
        Event::Reply { actor, bookie, answer } => {
            let kind = match answer {
                Answer::Append(entry, result) => entry.0 * 4 + u64::from(result.is_ok()),
                Answer::Fence(result) => 2 + u64::from(result.is_ok()) * 4,
                Answer::Read(round, result) => 3 + round * 8 + u64::from(result.is_ok()) * 4,
            };
            3 + (((*actor << 8) as u64 + *bookie as u64 + (kind << 24)) << 4)
        }
        Event::MetaArrive { .. } => 4,
        Event::MetaLate { .. } => 5,
        Event::MetaReply { .. } => 6,
        Event::Picked { actor, .. } => 7 + ((*actor as u64) << 4),
        Event::Tick { actor } => 8 + ((*actor as u64) << 4),
        Event::Step(owner) => 9 + ((*owner as u64) << 4),
        Event::TakeOver => 10,
        Event::Fault(_) => 11,
    }
}
