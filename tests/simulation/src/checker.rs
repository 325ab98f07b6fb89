//! The promises, one file each. Each adds what it looks at to the history's methods, and tells the
//! first break.
//! - `order`: one message at a place, and one order for all;
//! - `readable`: what has a receipt can be read in the end;
//! - `copies`: what is committed has its ack quorum of durable copies, or all of them;
//! - `restored`: when the faults are over, every fragment gets all its copies again;
//! - `damage`: nobody finds damage where none was done;
//! - `durable`: what is confirmed to a producer is on disks by then;
//! - `closed`: a closed ledger never changes, and nobody's entry is confirmed beyond its end;
//! - `redelivery`: what was acknowledged with a receipt isn't dispatched again;
//! - `cursor`: what nobody acknowledged isn't skipped;
//! - `progress`: when the faults are over, everything goes on.

pub(crate) mod closed;
pub(crate) mod copies;
mod cursor;
pub(crate) mod damage;
pub(crate) mod durable;
mod order;
mod progress;
mod readable;
mod redelivery;
pub(crate) mod restored;

pub(crate) use redelivery::Handed;
