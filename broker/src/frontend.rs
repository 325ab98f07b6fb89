//! What speaks to clients: thin layers that decode, call the core and encode.
//!
//! *Architecture invariant:* front-ends call only the core's public API, and never each other.

pub mod admin;
pub mod grpc;
