//! What a store does with a transaction that has begun.

use std::future::{pending, ready};

use futures_util::future::BoxFuture;
use sqlx::Database;

use crate::store::error::StoreError;

/// How deep a transaction is that has begun and is in no savepoint.
pub(crate) const OUTERMOST: usize = 1;

/// How a store ends its transactions, and what it knows of one of them.
pub(crate) trait Begun<DB: Database>: Send + Sync + 'static {
    /// Resolves when sqlx's count of the levels is right again, after a handler that had the connection itself: a nested
    /// transaction that is dropped has its rollback queued.
    fn catch_up<'a>(&'a self, connection: &'a mut DB::Connection) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Proves that the connection is in the transaction that was begun, and readies it for the record; fails with [`Ended`](crate::transaction::error::Ended)
    /// or [`Aborted`](crate::transaction::error::Aborted) otherwise.
    fn prove<'a>(&'a self, connection: &'a mut DB::Connection) -> BoxFuture<'a, Result<(), StoreError>>;

    fn commit<'a>(&'a self, connection: &'a mut DB::Connection) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Undoes what was written, and leaves the connection as the pool gave it out; fails with
    /// [`Committed`](crate::transaction::error::Committed) if the handler has committed it.
    fn roll_back<'a>(&'a self, connection: &'a mut DB::Connection) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Resolves when it is certain that a statement which is under way has no answer any more, because the connection carries
    /// nothing. Never resolves as long as the transaction is alive.
    fn silence(&self) -> BoxFuture<'_, ()> {
        Box::pin(pending())
    }

    /// Finds out how it has ended without its connection, which is closed; fails with
    /// [`Committed`](crate::transaction::error::Committed) if the handler has committed it.
    fn find_out(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(ready(Ok(())))
    }

    /// What an error of a statement of the handler says of the transaction; `None` where it says nothing.
    fn failure(&self, error: &sqlx::Error) -> Option<Failure>;

    /// Whether it has ended, as far as that is known without asking, where sqlx must count `depth` levels. Once it has,
    /// nothing brings it back.
    fn has_ended(&self, connection: &DB::Connection, depth: usize) -> bool;

    /// Sees to it that no further statement takes effect on the connection, whose transaction has ended.
    fn close_off(&self, connection: &mut DB::Connection);
}

/// What an error of a statement says of its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "postgres"),
    allow(dead_code, reason = "SQLite aborts no transaction for the sake of another one")
)]
pub(crate) enum Failure {
    /// The database has aborted it for the sake of another one.
    Conflict,
    /// It was aborted for another reason.
    Other,
    /// It had been aborted before.
    Aborted,
}
