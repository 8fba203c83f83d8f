//! What a batcher needs to know about the operations of one kind.

use std::sync::Arc;

use crate::store::error::StoreError;

/// How operations of one kind are sent.
pub(crate) trait Sending: Send + Sync + 'static {
    type Operation: Send + Sync + 'static;

    type Answer: Send + 'static;

    /// What a call needs before it can be sent, such as a connection.
    type Session: Send + 'static;

    type Error: Send + Sync + 'static;

    /// The place of an operation in a batch. Each place is taken once, by the first of its operations.
    type Place: Ord;

    /// The largest number of operations in one batch.
    const MOST: usize;

    /// A batch with this many bytes takes no further operation.
    const MOST_BYTES: usize;

    /// Returns the number of calls that are under way before further operations gather.
    fn under_way(&self) -> usize;

    /// Returns the place of the operation that joined the queue with this number.
    fn place(operation: &Self::Operation, number: u64) -> Self::Place;

    /// Returns the approximate number of bytes that the operation adds to the batch.
    fn bytes(&self, operation: &Self::Operation) -> usize;

    /// Waits for what the next call needs.
    fn session(&self) -> impl Future<Output = Result<Self::Session, StoreError>> + Send;

    /// Sends the operations, which are sorted by place. Returns an answer for each of them. An operation without an answer is sent
    /// in a call of its own.
    fn send(
        &self,
        batch: &[Arc<Self::Operation>],
        session: &mut Self::Session,
    ) -> impl Future<Output = Result<Vec<Option<Self::Answer>>, Self::Error>> + Send;

    /// Returns whether the server has rejected the batch, or the batch was not sent, so that each operation may be sent by itself.
    fn is_rejected(error: &Self::Error) -> bool;

    /// Returns the error of a batch whose task ended before the answer, together with its runtime or by a panic.
    fn lost_with_its_task() -> Self::Error;

    /// Returns the answer for another operation with the same place that waited in the queue, if it needs no call of its own.
    fn answer_of_another(answer: &Self::Answer) -> Option<Self::Answer>;
}
