//! What a store does with a transaction that has begun.

use std::future::{pending, ready};

use futures_util::future::BoxFuture;
use sqlx::Database;
use sqlx::pool::PoolConnection;

use crate::store::error::StoreError;

/// The transaction depth that sqlx counts while a transaction is open, without a savepoint in it.
pub(crate) const OUTERMOST: usize = 1;

/// How a store ends a transaction that has begun, and what the store knows about the transaction.
pub(crate) trait Begun<DB: Database>: Send + Sync + 'static {
    /// Waits until sqlx's count of the levels is correct again, after a handler had direct access to the connection:
    /// the rollback of a dropped nested transaction is only queued.
    fn catch_up<'a>(&'a self, connection: &'a mut DB::Connection) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Proves that the connection is still in the transaction that was begun, and prepares it for the record. Otherwise
    /// fails with [`Ended`](crate::transaction::error::Ended) or [`Aborted`](crate::transaction::error::Aborted).
    fn prove<'a>(&'a self, connection: &'a mut DB::Connection) -> BoxFuture<'a, Result<(), StoreError>>;

    fn commit<'a>(&'a self, connection: &'a mut DB::Connection) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Returns whether the connection has no open transaction after its end, as far as sqlx's count of the levels shows.
    fn is_over(&self, connection: &DB::Connection) -> bool;

    /// Takes the connection back after the end of the transaction. It is in the state in which the pool handed it out.
    fn give_back(&self, connection: PoolConnection<DB>) {
        drop(connection);
    }

    /// Undoes the writes, and leaves the connection in the state in which the pool handed it out. Fails with
    /// [`Committed`](crate::transaction::error::Committed) if the handler has committed the transaction.
    fn roll_back<'a>(&'a self, connection: &'a mut DB::Connection) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Resolves when it is certain that a running statement will get no answer, because the connection is dead. Never
    /// resolves while the transaction is alive.
    fn silence(&self) -> BoxFuture<'_, ()> {
        Box::pin(pending())
    }

    /// Finds out how the transaction ended, after its connection was closed. Fails with
    /// [`Committed`](crate::transaction::error::Committed) if the handler has committed the transaction.
    fn find_out(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(ready(Ok(())))
    }

    /// Takes note of a statement of the handler before it is prepared.
    fn note_statement(&self, _sql: &str) {}

    /// Takes note that the handler gets the connection itself, with which it can do anything.
    fn note_direct_use(&self) {}

    /// Returns what an error of a handler's statement means for the transaction. Returns `None` if the error does not
    /// affect the transaction.
    fn failure(&self, error: &sqlx::Error) -> Option<Failure>;

    /// Returns whether the transaction has ended, as far as that is known without a query. `depth` is the number of
    /// levels that sqlx must count. A transaction that has ended never becomes open again.
    fn has_ended(&self, connection: &DB::Connection, depth: usize) -> bool;

    /// Ensures that no further statement takes effect on the connection after its transaction has ended.
    fn close_off(&self, connection: &mut DB::Connection);
}

/// What an error of a statement means for its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "postgres"),
    allow(dead_code, reason = "SQLite aborts no transaction for the sake of another one")
)]
pub(crate) enum Failure {
    /// The database has aborted the transaction because of a conflict with another one.
    Conflict,
    /// The transaction was aborted for another reason.
    Other,
    /// The transaction was already aborted before the statement.
    Aborted,
}
