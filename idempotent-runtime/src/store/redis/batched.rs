//! Operations of many callers that are sent together.

use std::io;
use std::sync::Arc;

use redis::{RedisError, RedisResult};

use crate::store::batch::batcher::Batcher;
use crate::store::batch::sending::Sending;
use crate::store::error::StoreError;

/// The number of calls for one kind of operation that are under way before further operations gather.
const UNDER_WAY: usize = 2;

/// An operation with more bytes is sent in a call of its own.
pub(super) const LARGEST: usize = 64 * 1024;

/// How operations of one kind are sent, in the order of their arrival.
pub(super) trait Batched: Send + Sync + 'static {
    type Operation: Send + Sync + 'static;

    type Answer: Send + 'static;

    /// Returns the approximate number of bytes that the operation adds to the batch.
    fn bytes(&self, operation: &Self::Operation) -> usize;

    /// Sends the operations. Returns an answer for each of them. An operation without an answer is sent in a call of its own.
    fn send(
        &self,
        batch: &[Arc<Self::Operation>],
    ) -> impl Future<Output = RedisResult<Vec<Option<Self::Answer>>>> + Send;

    /// Returns whether the server has rejected the batch, so that each operation may be sent by itself.
    fn is_rejected(error: &RedisError) -> bool;
}

/// Sends operations in one call.
pub(super) struct InOneCall<B>(pub(super) B);

impl<B: Batched> InOneCall<B> {
    pub(super) fn batcher(of: B) -> Arc<Batcher<Self>> {
        Batcher::new(Self(of))
    }
}

impl<B: Batched> Sending for InOneCall<B> {
    type Operation = B::Operation;
    type Answer = B::Answer;
    type Session = ();
    type Error = RedisError;
    /// The order of arrival.
    type Place = u64;

    /// The server runs a script as a whole, and serves no other client meanwhile.
    const MOST: usize = 32;

    const MOST_BYTES: usize = 256 * 1024;

    fn under_way(&self) -> usize {
        UNDER_WAY
    }

    fn place(_: &B::Operation, number: u64) -> u64 {
        number
    }

    fn bytes(&self, operation: &B::Operation) -> usize {
        self.0.bytes(operation)
    }

    async fn session(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn send(&self, batch: &[Arc<B::Operation>], (): &mut ()) -> RedisResult<Vec<Option<B::Answer>>> {
        self.0.send(batch).await
    }

    fn is_rejected(error: &RedisError) -> bool {
        B::is_rejected(error)
    }

    fn lost_with_its_task() -> RedisError {
        io::Error::new(io::ErrorKind::ConnectionAborted, "the task that sent the call has ended").into()
    }

    /// Each operation has a place of its own.
    fn answer_of_another(_: &B::Answer) -> Option<B::Answer> {
        None
    }
}
