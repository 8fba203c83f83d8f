//! Watches over the connection of handlers' transactions: nothing is committed on it but by the engine.
//!
//! SQLite ends a transaction by itself where a disk is full, or where a constraint says so (`ON CONFLICT ROLLBACK`); a handler
//! may send ROLLBACK or COMMIT; and sqlx rolls back when the future of a nested `begin` is dropped. Whatever follows on the
//! connection would commit by itself. SQLite asks before each commit whether it may, and tells of each rollback.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use sqlx::sqlite::{Sqlite, SqliteConnection, SqliteTransactionManager};
use sqlx_core::transaction::TransactionManager as _;

use super::clock::Clock;
use super::failure::store_error;
use super::lock_time::LockTime;
use crate::store::StoreError;
use crate::sync::{Mutex, lock};
use crate::transaction::{Begun, Ended, Failure};

#[derive(Default)]
pub(super) struct Guard {
    may_commit: AtomicBool,
    has_ended: AtomicBool,
    times: Mutex<Option<Times>>,
}

#[derive(Clone, Copy)]
struct Times {
    clock: Clock,
    waiting: LockTime,
    holding: LockTime,
}

impl Guard {
    pub(super) async fn watch(connection: &mut SqliteConnection) -> Result<Arc<Self>, sqlx::Error> {
        let guard = Arc::new(Self::default());
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

    fn holds(&self) -> Result<(), StoreError> {
        if self.has_ended() { Err(StoreError::unavailable(Ended)) } else { Ok(()) }
    }
}

impl Begun<Sqlite> for Guard {
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
            self.may_commit.store(true, Ordering::SeqCst);
            let committed = SqliteTransactionManager::commit(connection).await.map_err(store_error);
            self.may_commit.store(false, Ordering::SeqCst);
            committed
        })
    }

    fn roll_back<'a>(&'a self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let held = self.holds();
            let undone = match &held {
                Ok(()) => SqliteTransactionManager::rollback(connection).await.map_err(store_error),
                Err(_) => Ok(()),
            };
            // What it wrote before was undone too.
            let times = *lock(&self.times);
            if let (Ok(()), Some(Times { clock, waiting, .. })) = (&undone, times) {
                self.may_commit.store(true, Ordering::SeqCst);
                let made_up = waiting.make_up_alone(connection, clock).await;
                self.may_commit.store(false, Ordering::SeqCst);
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

    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Nothing is committed on it in any case.
    fn close_off(&self, _: &mut SqliteConnection) {}
}
