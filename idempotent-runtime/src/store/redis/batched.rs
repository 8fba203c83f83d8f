//! What the batches of claims and of completions have in common.

use std::io;

use redis::RedisError;

/// The number of calls for one kind of operation that are under way before further operations gather.
pub(super) const UNDER_WAY: usize = 2;

/// The largest number of operations in one batch. The server runs a script as a whole, and serves no other client meanwhile.
pub(super) const MOST: usize = 32;

/// An operation with more bytes is sent in a call of its own.
pub(super) const LARGEST: usize = 64 * 1024;

/// A batch with this many bytes takes no further operation.
pub(super) const MOST_BYTES: usize = 256 * 1024;

pub(super) fn lost_with_its_task() -> RedisError {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the task that sent the call has ended").into()
}
