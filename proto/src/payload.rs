//! The bytes of a stored entry, in up to two parts, so that the broker can put its header in
//! front of a producer's batch without copying the batch.

use bytes::{Bytes, BytesMut};

/// An entry's bytes: `head` followed by `body`. Either may be empty. Clones share the bytes.
#[derive(Debug, Clone, Default)]
pub struct Payload {
    /// The first part; small.
    pub head: Bytes,
    /// The rest.
    pub body: Bytes,
}

impl Payload {
    /// Both parts.
    #[must_use]
    pub fn new(head: Bytes, body: Bytes) -> Self {
        Self { head, body }
    }

    /// Length of both parts in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// True if there is not one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One contiguous buffer; copies only if both parts hold something.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        if self.head.is_empty() {
            return self.body;
        }
        if self.body.is_empty() {
            return self.head;
        }
        let mut joined = BytesMut::with_capacity(self.len());
        joined.extend_from_slice(&self.head);
        joined.extend_from_slice(&self.body);
        joined.freeze()
    }
}

impl From<Bytes> for Payload {
    fn from(body: Bytes) -> Self {
        Self { head: Bytes::new(), body }
    }
}

/// Equal if the bytes are, however they are split.
impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self.head.iter().chain(&self.body).eq(other.head.iter().chain(&other.body))
    }
}

impl Eq for Payload {}
