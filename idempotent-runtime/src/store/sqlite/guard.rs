//! Watches over the connection of handlers' transactions: nothing is committed on it but by the engine.
//!
//! SQLite ends a transaction by itself where a disk is full, or where a constraint says so (`ON CONFLICT ROLLBACK`); a handler
//! may send ROLLBACK or COMMIT; and sqlx rolls back when the future of a nested `begin` is dropped. Whatever follows on the
//! connection would commit by itself. SQLite asks before each commit whether it may, and tells of each rollback.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use sqlx::Connection as _;
use sqlx::sqlite::{Sqlite, SqliteConnection, SqliteTransactionManager};
use sqlx_core::transaction::TransactionManager as _;

use crate::store::error::StoreError;
use crate::store::sqlite::failure::store_error;
use crate::store::sqlite::settings;
use crate::transaction::begun::{Begun, Failure, OUTERMOST};
use crate::transaction::error::{Ended, Violated};

#[derive(Default)]
pub(super) struct Guard {
    may_commit: AtomicBool,
    has_ended: AtomicBool,
    /// As the connection was opened.
    settings: String,
}

impl Guard {
    pub(super) async fn watch(connection: &mut SqliteConnection) -> Result<Arc<Self>, sqlx::Error> {
        let settings = settings::of(connection).await?;
        Ok(Arc::new(Self { settings, ..Self::default() }))
    }

    /// A transaction has begun. The hooks are set each time, because a handler before may have replaced them.
    pub(super) async fn begun(self: &Arc<Self>, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        self.may_commit.store(false, Ordering::SeqCst);
        self.has_ended.store(false, Ordering::SeqCst);
        let mut handle = connection.lock_handle().await?;
        handle.set_commit_hook({
            let guard = Arc::clone(self);
            // A commit that may not be becomes a rollback.
            move || guard.may_commit.load(Ordering::SeqCst)
        });
        handle.set_rollback_hook({
            let guard = Arc::clone(self);
            move || guard.has_ended.store(true, Ordering::SeqCst)
        });
        Ok(())
    }

    /// Whether a handler has left the connection as it was opened.
    pub(super) async fn finds_as_it_was(&self, connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
        Ok(settings::of(connection).await? == self.settings)
    }

    fn holds(&self) -> Result<(), StoreError> {
        if self.has_ended.load(Ordering::SeqCst) { Err(StoreError::unavailable(Ended)) } else { Ok(()) }
    }
}

impl Begun<Sqlite> for Guard {
    /// The thread of the connection counts, when it gets to what is queued.
    fn catch_up<'a>(&'a self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { connection.ping().await.map_err(store_error) })
    }

    fn prove<'a>(&'a self, _: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { self.holds() })
    }

    fn commit<'a>(&'a self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            // Again: the statement of the record may have ended it.
            self.holds()?;
            self.may_commit.store(true, Ordering::SeqCst);
            let committed = SqliteTransactionManager::commit(connection).await;
            self.may_commit.store(false, Ordering::SeqCst);
            // The one constraint that SQLite can defer to the commit.
            committed.map_err(|error| match error.as_database_error() {
                Some(violated) if violated.is_foreign_key_violation() => {
                    StoreError::unavailable(Violated(Box::new(error)))
                }
                _ => store_error(error),
            })
        })
    }

    fn roll_back<'a>(&'a self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            self.holds()?;
            roll_back_all(connection).await.map_err(store_error)
        })
    }

    /// SQLite has one writer: no transaction is aborted for the sake of another one.
    fn failure(&self, _: &sqlx::Error) -> Option<Failure> {
        None
    }

    /// Not by the levels: after a nested transaction that was dropped, there is one too many until its rollback has run. What
    /// follows on the connection runs after that, and where that ends the transaction, SQLite lets nothing be committed.
    fn has_ended(&self, _: &SqliteConnection, _: usize) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Nothing is committed on it in any case.
    fn close_off(&self, _: &mut SqliteConnection) {}
}

/// Whatever nested transactions a handler has left open.
async fn roll_back_all(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    if SqliteTransactionManager::get_transaction_depth(connection) == OUTERMOST {
        return SqliteTransactionManager::rollback(connection).await;
    }
    // Fails where the rollback of a nested `begin` that was dropped has come first.
    let _ = sqlx::query("ROLLBACK").execute(connection).await;
    Ok(())
}
