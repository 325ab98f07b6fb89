//! Shared: entries go round robin to the consumers that have credit; those with the lowest
//! priority value go first, and the others get what these have no credit for.

use crate::core::dispatch::NotMoving;
use crate::core::dispatch::consumer::Consumer;

/// The consumer served longest ago among those of the first priority that can take an entry.
/// `consumers` are in order of priority.
pub(super) fn pick(consumers: &[Consumer], max_unacked: u64) -> Result<usize, NotMoving> {
    let mut best: Option<(usize, &Consumer)> = None;
    for (at, consumer) in consumers.iter().enumerate() {
        match best {
            Some((_, found)) if found.priority != consumer.priority => break,
            Some((_, found)) if found.served <= consumer.served => {}
            _ if ready(consumer, max_unacked) => best = Some((at, consumer)),
            _ => {}
        }
    }
    best.map(|(at, _)| at).ok_or_else(|| why_none(consumers, max_unacked))
}

fn ready(consumer: &Consumer, max_unacked: u64) -> bool {
    consumer.has_credit() && consumer.unacked_messages < max_unacked
}

fn why_none(consumers: &[Consumer], limit: u64) -> NotMoving {
    if consumers.is_empty() {
        return NotMoving::NoConsumer;
    }
    let with_credit = consumers.iter().filter(|consumer| consumer.has_credit());
    if let Some(held) = with_credit.map(|consumer| consumer.unacked_messages).min() {
        return NotMoving::ConsumerUnacked { held, limit };
    }
    if consumers.iter().any(|consumer| consumer.credit_messages > 0) {
        NotMoving::NoByteCredit
    } else {
        NotMoving::NoMessageCredit
    }
}

/// Credit in messages and bytes that entries can be handed out on.
pub(super) fn credit(consumers: &[Consumer], max_unacked: u64) -> (u64, u64) {
    let ready = consumers.iter().filter(|consumer| ready(consumer, max_unacked));
    ready.fold((0, 0), |(messages, bytes), consumer| {
        let (more_messages, more_bytes) = consumer.credit();
        let room = max_unacked.saturating_sub(consumer.unacked_messages);
        (messages + more_messages.min(room), bytes + more_bytes)
    })
}
