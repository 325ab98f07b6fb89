//! gRPC streams whose large messages are not copied.
//!
//! tonic's own streams copy what arrives into one buffer for each message, and what is sent into
//! another; with entries of many KiB that each pass several processes, these copies and the pages
//! for them cost more processor time than anything else. Here a message is decoded from the pieces
//! in which the connection delivered it ([`Messages`]), and is sent as pieces that share its large
//! parts ([`ChunkedBody`]). [`WholeBodies`] lets a method of a generated server have its bodies.
//!
//! What is on the wire is what gRPC says: a peer can't tell the difference.

mod bodies;
mod call;
mod chunks;
mod large;
mod messages;
mod pieces;

pub use bodies::{NoMessages, RequestBody, WholeBodies, respond};
pub use call::open;
pub(crate) use chunks::shared_len;
pub use chunks::{ChunkedBody, Chunks, IntoChunks};
pub use messages::{Malformed, Messages};
pub use pieces::Pieces;

/// The methods that are streams, as both sides name them.
pub mod path {
    /// Messages to a broker.
    pub const PRODUCE: &str = "/geminga.v1.Messaging/Produce";
    /// Messages from a broker.
    pub const CONSUME: &str = "/geminga.v1.Messaging/Consume";
    /// Entries to a bookie.
    pub const APPEND: &str = "/geminga.v1.Bookie/Append";
    /// Entries from a bookie.
    pub const READ: &str = "/geminga.v1.Bookie/Read";
}

/// gRPC's frame around a message: a flag and the message's length.
const HEADER_BYTES: usize = 5;
