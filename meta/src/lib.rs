//! The metadata store: a small, linearizable, watchable key-value store behind one trait, and the
//! typed records that Geminga keeps in it.
//!
//! *Architecture invariant:* nothing per message, per entry or per acknowledgement is written
//! here; the store is as small as etcd wants it. Nothing is promised that etcd can't do
//! atomically.

pub mod bundle;
pub mod cluster;
pub mod dump;
pub mod election;
pub mod id_block;
pub mod keys;
pub mod lease_keeper;
pub mod read;
pub mod record;
pub mod repair;
pub mod store;
pub mod update_loop;
pub mod watch_cache;
