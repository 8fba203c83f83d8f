//! The guard of the connection of handlers' transactions. Only the engine can commit on it.
//!
//! A transaction can end before the engine ends it. SQLite ends it if a disk is full, or if a constraint says so (`ON
//! CONFLICT ROLLBACK`). A handler may send ROLLBACK or COMMIT. sqlx rolls back when the future of a nested `begin` is
//! dropped. Every later statement on the connection would commit by itself. The guard prevents that by SQLite's hooks:
//! SQLite asks before each commit, and reports each rollback.

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
    /// Whether SQLite has the hooks, and no handler can have replaced them.
    has_hooks: AtomicBool,
    /// Whether the last handler may have changed the settings of the connection.
    may_be_changed: AtomicBool,
    /// Whether a handler has got the connection itself. It may have left a function that changes settings, so from then
    /// on no text of a statement says whether they are changed.
    was_used_directly: AtomicBool,
    /// The settings of the connection when it was opened.
    settings: String,
}

impl Guard {
    pub(super) async fn watch(connection: &mut SqliteConnection) -> Result<Arc<Self>, sqlx::Error> {
        let settings = settings::of(connection).await?;
        Ok(Arc::new(Self { settings, ..Self::default() }))
    }

    /// Sets the hooks after a transaction has begun, unless they are set. A handler that has got the connection itself
    /// may have replaced them.
    pub(super) async fn begun(self: &Arc<Self>, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        self.may_commit.store(false, Ordering::SeqCst);
        self.has_ended.store(false, Ordering::SeqCst);
        if self.has_hooks.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut handle = connection.lock_handle().await?;
        handle.set_commit_hook({
            let guard = Arc::clone(self);
            // A commit that is not allowed becomes a rollback.
            move || guard.may_commit.load(Ordering::SeqCst)
        });
        handle.set_rollback_hook({
            let guard = Arc::clone(self);
            move || guard.has_ended.store(true, Ordering::SeqCst)
        });
        self.has_hooks.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Returns whether the settings of the connection are those with which it was opened. The query costs about as much
    /// as an INSERT, so it is left out if no statement can have changed them.
    pub(super) async fn finds_as_it_was(&self, connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
        let may_be_changed = self.may_be_changed.swap(false, Ordering::SeqCst);
        if !may_be_changed && !self.was_used_directly.load(Ordering::SeqCst) {
            return Ok(true);
        }
        Ok(settings::of(connection).await? == self.settings)
    }

    fn holds(&self) -> Result<(), StoreError> {
        if self.has_ended.load(Ordering::SeqCst) { Err(StoreError::unavailable(Ended)) } else { Ok(()) }
    }
}

impl Begun<Sqlite> for Guard {
    /// The count is correct after the connection's thread has run all queued work.
    fn catch_up<'a>(&'a self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { connection.ping().await.map_err(store_error) })
    }

    fn prove<'a>(&'a self, _: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { self.holds() })
    }

    fn commit<'a>(&'a self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            // This is checked again, because the statement of the record may have ended the transaction.
            self.holds()?;
            self.may_commit.store(true, Ordering::SeqCst);
            let committed = SqliteTransactionManager::commit(connection).await;
            self.may_commit.store(false, Ordering::SeqCst);
            // This is the only constraint that SQLite can defer to the commit.
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

    fn note_statement(&self, sql: &str) {
        if settings::may_be_changed_by(sql) {
            self.may_be_changed.store(true, Ordering::SeqCst);
        }
    }

    fn note_direct_use(&self) {
        self.was_used_directly.store(true, Ordering::SeqCst);
        self.has_hooks.store(false, Ordering::SeqCst);
    }

    /// Returns `None`, because SQLite has only one writer and aborts no transaction in favour of another one.
    fn failure(&self, _: &sqlx::Error) -> Option<Failure> {
        None
    }

    /// The number of levels does not show it: after a nested transaction was dropped, there is one level too many until
    /// its rollback has run. Later statements on the connection run after that rollback. If the rollback ends the
    /// transaction, SQLite allows no commit.
    fn has_ended(&self, _: &SqliteConnection, _: usize) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Does nothing, because the guard prevents every commit anyway.
    fn close_off(&self, _: &mut SqliteConnection) {}
}

/// Rolls back all nested transactions that a handler has left open.
async fn roll_back_all(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    if SqliteTransactionManager::get_transaction_depth(connection) == OUTERMOST {
        return SqliteTransactionManager::rollback(connection).await;
    }
    // This fails if the rollback of a dropped nested `begin` has run first.
    let _ = sqlx::query("ROLLBACK").execute(connection).await;
    Ok(())
}
