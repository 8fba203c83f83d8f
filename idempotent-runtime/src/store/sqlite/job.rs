//! A write in the writer's queue, with the caller that waits for its answer.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sqlx::error::BoxDynError;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use tokio::sync::oneshot;

use crate::store::error::StoreError;
use crate::store::line::Call;
use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::failure::Failure;
use crate::store::sqlite::locked::Context;
use crate::store::sqlite::rows::Kind;
use crate::store::sqlite::writes::Write;

/// A [`Pending`] write with an answer of any type.
pub(super) trait Job: Send {
    /// Applies the write and keeps its outcome. Returns an error only if the transaction is broken.
    fn apply<'a>(
        &'a mut self,
        connection: &'a mut SqliteConnection,
        context: Context<'a>,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>>;
    /// Returns the statement that can do this write as one of many rows.
    fn row_of(&self) -> Option<Kind>;
    /// Adds the arguments of its row.
    fn add_to(&self, arguments: &mut SqliteArguments, clock: Clock) -> Result<(), BoxDynError>;
    /// Keeps the outcome after the row was written.
    fn was_row(&mut self);
    /// Sends the outcome to the caller after it was written to the disk.
    fn settle(self: Box<Self>);
    /// Sends the error to the caller. Nothing took effect.
    fn reject(self: Box<Self>, error: Arc<sqlx::Error>);
    /// Returns whether the write is skipped because its caller no longer waits. Called once, before the write is
    /// applied.
    fn abandoned(&self) -> bool;
    /// Returns about how many bytes the write adds to the log.
    fn bytes(&self) -> usize;
}

/// A write and the caller that waits for it.
pub(super) struct Pending<W: Write> {
    write: W,
    outcome: Option<Result<W::Output, StoreError>>,
    reply: oneshot::Sender<Result<W::Output, StoreError>>,
    call: Option<Arc<Call>>,
}

impl<W: Write> Pending<W> {
    pub(super) fn new(
        write: W,
        reply: oneshot::Sender<Result<W::Output, StoreError>>,
        call: Option<Arc<Call>>,
    ) -> Self {
        Self { write, outcome: None, reply, call }
    }
}

impl<W: Write> Job for Pending<W> {
    fn apply<'a>(
        &'a mut self,
        connection: &'a mut SqliteConnection,
        context: Context<'a>,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>> {
        Box::pin(async move {
            self.outcome = Some(match self.write.apply(connection, context).await {
                Ok(output) => Ok(output),
                Err(Failure::Answer(error)) => Err(error),
                Err(Failure::Sqlite(error)) => return Err(error),
            });
            Ok(())
        })
    }

    fn row_of(&self) -> Option<Kind> {
        self.write.as_row().map(|(kind, _)| kind)
    }

    fn add_to(&self, arguments: &mut SqliteArguments, clock: Clock) -> Result<(), BoxDynError> {
        self.write.add_to(arguments, clock)
    }

    fn was_row(&mut self) {
        self.outcome = self.write.as_row().map(|(_, output)| Ok(output));
    }

    fn settle(self: Box<Self>) {
        if let Some(outcome) = self.outcome {
            // A caller that no longer waits will ask again and get the same answer.
            let _ = self.reply.send(outcome);
        }
    }

    fn reject(self: Box<Self>, error: Arc<sqlx::Error>) {
        let _ = self.reply.send(Err(self.write.rejected(error)));
    }

    fn abandoned(&self) -> bool {
        let is_withdrawn = self.call.as_ref().is_some_and(|call| !call.send());
        is_withdrawn || W::ONLY_IF_AWAITED && self.reply.is_closed()
    }

    fn bytes(&self) -> usize {
        self.write.bytes()
    }
}
