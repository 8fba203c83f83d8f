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
use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::failure::store_error;
use crate::store::sqlite::lock_time::LockTime;
use crate::store::sqlite::settings;
use crate::sync::{Mutex, lock};
use crate::transaction::begun::{Begun, Failure, OUTERMOST};
use crate::transaction::error::Ended;

/// What the handler writes can be undone while the lock is kept.
pub(super) const BEGIN: &str = "BEGIN IMMEDIATE; SAVEPOINT idempotency_handler";

const ROLL_BACK_THE_HANDLER: &str = "ROLLBACK TO idempotency_handler";

#[derive(Default)]
pub(super) struct Guard {
    may_commit: AtomicBool,
    has_ended: AtomicBool,
    times: Mutex<Option<Times>>,
    /// As the connection was opened.
    settings: String,
}

#[derive(Clone, Copy)]
struct Times {
    clock: Clock,
    waiting: LockTime,
    holding: LockTime,
}

impl Guard {
    pub(super) async fn watch(connection: &mut SqliteConnection) -> Result<Arc<Self>, sqlx::Error> {
        let settings = settings::of(connection).await?;
        let guard = Arc::new(Self { settings, ..Self::default() });
        let mut handle = connection.lock_handle().await?;
        handle.set_commit_hook({
            let guard = Arc::clone(&guard);
            // A commit that may not be becomes a rollback.
            move || guard.may_commit.load(Ordering::SeqCst)
        });
        handle.set_rollback_hook({
            let guard = Arc::clone(&guard);
            move || guard.has_ended.store(true, Ordering::SeqCst)
        });
        Ok(guard)
    }

    /// A transaction has begun, which waited for the lock since `waiting` and holds it since `holding`.
    pub(super) fn begun(&self, clock: Clock, waiting: LockTime, holding: LockTime) {
        *lock(&self.times) = Some(Times { clock, waiting, holding });
        self.may_commit.store(false, Ordering::SeqCst);
        self.has_ended.store(false, Ordering::SeqCst);
    }

    /// Undoes what the handler wrote, and makes up for the time of the lock before another process gets it, which would judge
    /// the leases that could not be renewed meanwhile.
    async fn undo_and_make_up(&self, connection: &mut SqliteConnection, times: Times) -> Result<(), sqlx::Error> {
        sqlx::query(ROLL_BACK_THE_HANDLER).execute(&mut *connection).await?;
        times.waiting.make_up(connection, times.clock).await?;
        self.letting_commit(commit_all(connection)).await
    }

    async fn letting_commit<T>(&self, committing: impl Future<Output = T>) -> T {
        self.may_commit.store(true, Ordering::SeqCst);
        let committed = committing.await;
        self.may_commit.store(false, Ordering::SeqCst);
        committed
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
            let times = *lock(&self.times);
            if let Some(Times { clock, holding, .. }) = times {
                holding.make_up(connection, clock).await.map_err(store_error)?;
            }
            self.holds()?;
            self.letting_commit(SqliteTransactionManager::commit(connection)).await.map_err(store_error)
        })
    }

    fn roll_back<'a>(&'a self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let held = self.holds();
            let times = *lock(&self.times);
            if let (Ok(()), Some(times)) = (&held, times)
                && times.waiting.is_long(times.clock)
                && self.undo_and_make_up(connection, times).await.is_ok()
            {
                return Ok(());
            }
            let undone = match &held {
                Ok(()) => roll_back_all(connection).await.map_err(store_error),
                Err(_) => Ok(()),
            };
            if let (Ok(()), Some(Times { clock, waiting, .. })) = (&undone, times) {
                // What was made up for at the begin was undone too.
                let made_up = self.letting_commit(waiting.make_up_alone(connection, clock)).await;
                if let Err(error) = made_up {
                    tracing::warn!(%error, "the time of a long transaction could not be added to the leases of other handlers");
                    return Err(store_error(error));
                }
            }
            held.and(undone)
        })
    }

    /// SQLite has one writer: no transaction is aborted for the sake of another one.
    fn failure(&self, _: &sqlx::Error) -> Option<Failure> {
        None
    }

    /// Not by the levels: after a nested transaction that was dropped, there is one too many until its rollback has run. What
    /// follows on the connection runs after that, and where that ends the transaction, SQLite lets nothing be committed.
    fn has_ended(&self, _: &SqliteConnection) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Nothing is committed on it in any case.
    fn close_off(&self, _: &mut SqliteConnection) {}
}

/// Whatever nested transactions a handler has left open.
async fn commit_all(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    match SqliteTransactionManager::get_transaction_depth(connection) {
        OUTERMOST => SqliteTransactionManager::commit(connection).await,
        // sqlx does not learn of it, so that the connection can only be closed.
        _ => sqlx::query("COMMIT").execute(connection).await.map(drop),
    }
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
