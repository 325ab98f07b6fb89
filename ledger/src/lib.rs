//! The replicated ledger: an ordered, write-once sequence of entries on a quorum of bookies.
//!
//! The protocol is a state machine without I/O (`engine`); the runtime (`writer`, `reader`)
//! executes its commands through a [`transport::BookieTransport`] and the metadata store.

pub mod transport;
