//! The guard of the connection of handlers' transactions. Only the engine can commit on it.
//!
//! A transaction can end before the engine ends it. SQLite ends it if a disk is full, or if a constraint says so (`ON
//! CONFLICT ROLLBACK`). A handler may send ROLLBACK or COMMIT. sqlx rolls back when the future of a nested `begin` is
//! dropped. Every later statement on the connection would commit by itself. The guard prevents that by SQLite's hooks:
//! SQLite asks before each commit, and reports each rollback.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqliteTransactionManager};
use sqlx::{Connection as _, SqlSafeStr as _};
use sqlx_core::transaction::TransactionManager as _;

use crate::store::error::StoreError;
use crate::store::sqlite::failure::store_error;
use crate::store::sqlite::kept::Kept;
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
    kept: Arc<Kept>,
}

impl Guard {
    /// Lets sqlx count one level on the connection as long as it is open. So a nested `begin` is always a savepoint, and the engine's
    /// own BEGIN and COMMIT can each be in one call with another statement.
    pub(super) async fn watch(connection: &mut SqliteConnection, kept: Arc<Kept>) -> Result<Arc<Self>, sqlx::Error> {
        let settings = settings::of(connection).await?;
        SqliteTransactionManager::begin(connection, Some("BEGIN".into_sql_str())).await?;
        sqlx::query("ROLLBACK").execute(connection).await?;
        Ok(Arc::new(Self { settings, kept, ..Self::default() }))
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
            // A commit that is not allowed becomes a rollback. After the end of the transaction, a statement would commit by itself.
            move || guard.may_commit.load(Ordering::SeqCst) && !guard.has_ended.load(Ordering::SeqCst)
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
        if self.is_as_it_was() {
            return Ok(true);
        }
        self.may_be_changed.store(false, Ordering::SeqCst);
        Ok(settings::of(connection).await? == self.settings)
    }

    fn is_as_it_was(&self) -> bool {
        !self.may_be_changed.load(Ordering::SeqCst) && !self.was_used_directly.load(Ordering::SeqCst)
    }

    /// Runs the statement of the record and COMMIT in one call. If the statement of the record fails, COMMIT is not run.
    pub(super) async fn record_and_commit(
        &self,
        connection: &mut SqliteConnection,
        record: Query<'_, Sqlite, SqliteArguments>,
    ) -> Result<(), sqlx::Error> {
        self.committing(record.execute(connection)).await.map(drop)
    }

    /// Allows commits while the call runs, and not after it was dropped.
    async fn committing<T>(&self, call: impl Future<Output = T>) -> T {
        struct Allowed<'a>(&'a AtomicBool);
        impl Drop for Allowed<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::SeqCst);
            }
        }
        self.may_commit.store(true, Ordering::SeqCst);
        let _allowed = Allowed(&self.may_commit);
        call.await
    }

    /// Returns whether both hooks are surely those of this guard.
    pub(super) fn has_hooks(&self) -> bool {
        self.has_hooks.load(Ordering::SeqCst)
    }

    pub(super) fn holds(&self) -> Result<(), StoreError> {
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
            self.committing(sqlx::query("COMMIT").execute(connection)).await.map(drop).map_err(commit_error)
        })
    }

    fn is_over(&self, connection: &SqliteConnection) -> bool {
        SqliteTransactionManager::get_transaction_depth(connection) == OUTERMOST
    }

    fn give_back(&self, connection: PoolConnection<Sqlite>) {
        // The pool would ask the connection whether it works. The next handler waits for that answer.
        if self.is_as_it_was() {
            self.kept.put(connection);
        }
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

/// Converts an error of COMMIT.
pub(super) fn commit_error(error: sqlx::Error) -> StoreError {
    match error.as_database_error() {
        // This is the only constraint that SQLite can defer to the commit.
        Some(violated) if violated.is_foreign_key_violation() => StoreError::unavailable(Violated(Box::new(error))),
        _ => store_error(error),
    }
}

/// Rolls back all nested transactions that a handler has left open.
async fn roll_back_all(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let is_outermost = SqliteTransactionManager::get_transaction_depth(connection) == OUTERMOST;
    let rolled_back = sqlx::query("ROLLBACK").execute(connection).await;
    // This fails if the rollback of a dropped nested `begin` has run first.
    if is_outermost { rolled_back.map(drop) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn begun() -> (SqliteConnection, Arc<Guard>) {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.expect("it opens");
        sqlx::query("CREATE TABLE notes (note)").execute(&mut connection).await.expect("the table is made");
        let guard = Guard::watch(&mut connection, Arc::default()).await.expect("the settings are read");
        sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await.expect("it begins");
        guard.begun(&mut connection).await.expect("the hooks are set");
        (connection, guard)
    }

    async fn rows(connection: &mut SqliteConnection) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(connection).await.expect("it is counted")
    }

    fn record() -> Query<'static, Sqlite, SqliteArguments> {
        sqlx::query("INSERT INTO notes VALUES (?1); COMMIT").bind("record")
    }

    #[tokio::test]
    async fn record_and_its_commit_leave_the_level() {
        let (mut connection, guard) = begun().await;
        guard.record_and_commit(&mut connection, record()).await.expect("it commits");
        assert!(guard.is_over(&connection));
        sqlx::query("ROLLBACK").execute(&mut connection).await.expect_err("the transaction has ended");
        assert_eq!(rows(&mut connection).await, 1);
    }

    /// A statement of the handler may end the transaction after the engine has checked that it is open.
    #[tokio::test]
    async fn record_after_the_end_commits_nothing() {
        for end in ["ROLLBACK", "COMMIT"] {
            let (mut connection, guard) = begun().await;
            sqlx::query("INSERT INTO notes VALUES ('handler')").execute(&mut connection).await.expect("it is inserted");
            let _ = sqlx::query(end).execute(&mut connection).await;
            let recorded = guard.record_and_commit(&mut connection, record()).await;
            assert!(recorded.is_err(), "{end}");
            assert_eq!(rows(&mut connection).await, 0, "{end}");
        }
    }
}
