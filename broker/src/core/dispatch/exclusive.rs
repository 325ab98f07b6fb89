//! Exclusive and failover: one consumer is active and gets everything, in order.
//!
//! The active one has the lowest priority value, and of those it is the oldest. Consumers are
//! kept in that order, so it is the first. It alone may hold as much as the whole subscription
//! may: a consumer that acknowledges cumulatively, far apart, must not come to a stop.

use crate::core::dispatch::consumer::Consumer;
use crate::core::dispatch::{ConsumerKey, NotMoving};

pub(super) fn active(consumers: &[Consumer]) -> Option<ConsumerKey> {
    consumers.first().map(|consumer| consumer.key)
}

pub(super) fn pick(consumers: &[Consumer]) -> Result<usize, NotMoving> {
    let active = consumers.first().ok_or(NotMoving::NoConsumer)?;
    if active.credit_messages <= 0 {
        return Err(NotMoving::NoMessageCredit);
    }
    if active.credit_bytes <= 0 {
        return Err(NotMoving::NoByteCredit);
    }
    Ok(0)
}

/// Credit in messages and bytes that entries can be handed out on.
pub(super) fn credit(consumers: &[Consumer]) -> (u64, u64) {
    consumers.first().map_or((0, 0), Consumer::credit)
}
