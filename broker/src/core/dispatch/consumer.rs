//! A consumer as dispatch sees it: its credit and what it holds.

use crate::core::api::Delivery;
use crate::core::dispatch::ConsumerKey;
use crate::core::subscription::{ConsumerNumbers, ConsumerSpec};

/// Credits above this are not counted: far more than a client can mean, far from an overflow.
const MAX_CREDIT: i64 = 1 << 48;

/// One attached consumer.
#[derive(Debug)]
pub(super) struct Consumer {
    pub key: ConsumerKey,
    pub name: String,
    pub priority: i32,
    /// Below 0 after an entry that overdrew it.
    pub credit_messages: i64,
    pub credit_bytes: i64,
    /// Messages it holds unacknowledged.
    pub unacked_messages: u64,
    pub delivered_messages: u64,
    pub delivered_bytes: u64,
    /// When it was served last, in turns of the dispatcher.
    pub served: u64,
    /// Handed out in the current call, not yet in a command.
    pub outbox: Vec<Delivery>,
}

impl Consumer {
    pub fn new(key: ConsumerKey, spec: ConsumerSpec) -> Self {
        Self {
            key,
            name: spec.name,
            priority: spec.priority,
            credit_messages: 0,
            credit_bytes: 0,
            unacked_messages: 0,
            delivered_messages: 0,
            delivered_bytes: 0,
            served: 0,
            outbox: Vec::new(),
        }
    }

    pub fn add_credit(&mut self, messages: u32, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.credit_messages = (self.credit_messages + i64::from(messages)).min(MAX_CREDIT);
        self.credit_bytes = self.credit_bytes.saturating_add(bytes).min(MAX_CREDIT);
    }

    pub fn has_credit(&self) -> bool {
        self.credit_messages > 0 && self.credit_bytes > 0
    }

    /// The credits, as far as they are positive.
    pub fn credit(&self) -> (u64, u64) {
        (self.credit_messages.max(0).cast_unsigned(), self.credit_bytes.max(0).cast_unsigned())
    }

    /// Takes an entry and pays for it.
    pub fn take(&mut self, delivery: Delivery, turn: u64) {
        let bytes = delivery.payload.len() as u64;
        self.credit_messages -= i64::from(delivery.messages);
        self.credit_bytes = self.credit_bytes.saturating_sub_unsigned(bytes);
        self.unacked_messages += u64::from(delivery.messages);
        self.delivered_messages += u64::from(delivery.messages);
        self.delivered_bytes += bytes;
        self.served = turn;
        self.outbox.push(delivery);
    }

    pub fn numbers(&self) -> ConsumerNumbers {
        ConsumerNumbers {
            consumer: self.key,
            name: self.name.clone(),
            priority: self.priority,
            credit_messages: self.credit_messages,
            credit_bytes: self.credit_bytes,
            unacked_messages: self.unacked_messages,
            delivered_messages: self.delivered_messages,
            delivered_bytes: self.delivered_bytes,
        }
    }
}
