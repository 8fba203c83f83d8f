//! Response bodies that are alone in their buffers, so that a store in memory can keep them without a copy.

#![cfg_attr(
    not(any(feature = "memory", feature = "near-cache")),
    expect(dead_code, reason = "no store keeps records in memory")
)]

use bytes::Bytes;

/// A body that is alone in its buffer. It is identified by its place, because a store that wraps another one can put a
/// part of another buffer into the record.
#[derive(Clone, Copy)]
pub(crate) struct Alone {
    address: usize,
    length: usize,
}

impl Alone {
    pub(crate) fn of(body: &Bytes) -> Self {
        Self { address: body.as_ptr().addr(), length: body.len() }
    }

    pub(crate) fn is(self, body: &Bytes) -> bool {
        self.address == body.as_ptr().addr() && self.length == body.len()
    }
}
