//! The connection of handlers' transactions. There is one transaction at a time, because SQLite has one writer.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteRow};

use crate::store::active_transactions::ActiveTransactions;
use crate::store::error::StoreError;
use crate::store::line::Call;
use crate::store::sqlite::failure::store_error;
use crate::store::sqlite::guard::Guard;
use crate::store::sqlite::kept::Kept;
use crate::sync::{Mutex, lock};
use crate::transaction::close_on_drop::CloseOnDrop;
use crate::transaction::open::Open;

/// The right to write in this process. The writer's thread has it for a batch, or a handler for its transaction. This
/// lock is fair, which SQLite's own lock is not.
pub(super) type Turn = Arc<tokio::sync::Mutex<()>>;

pub(super) struct HandlerTransactions {
    pool: SqlitePool,
    kept: Arc<Kept>,
    /// The guard of the connection that the pool opened last.
    newest: Arc<Mutex<Arc<Guard>>>,
    turn: Turn,
    pub(super) running: Arc<ActiveTransactions>,
    /// Whether the key of the last claim had a row.
    pub(super) expects_rows: AtomicBool,
}

impl HandlerTransactions {
    pub(super) fn new(options: SqliteConnectOptions, turn: Turn) -> Self {
        let newest = Arc::<Mutex<Arc<Guard>>>::default();
        let (opened, given_back) = (Arc::clone(&newest), Arc::clone(&newest));
        let kept = Arc::<Kept>::default();
        let keeps = Arc::clone(&kept);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            // No line can have broken, and a statement on the connection fails if its thread is gone.
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(move |connection, _| {
                let (newest, kept) = (Arc::clone(&opened), Arc::clone(&keeps));
                Box::pin(async move {
                    let guard = Guard::watch(connection, kept).await?;
                    *lock(&newest) = guard;
                    Ok(())
                })
            })
            // A connection whose settings have changed is closed.
            .after_release(move |connection, _| {
                let guard = Arc::clone(&lock(&given_back));
                Box::pin(async move { guard.finds_as_it_was(connection).await })
            });
        Self {
            pool: pool.connect_lazy_with(options),
            kept,
            newest,
            turn,
            running: Arc::default(),
            expects_rows: AtomicBool::new(false),
        }
    }

    /// Returns the pool, and the connection that it does not have.
    pub(super) fn connection(&self) -> (SqlitePool, Arc<Kept>) {
        (self.pool.clone(), Arc::clone(&self.kept))
    }

    /// Returns the guard of the connection. The pool has one.
    pub(super) fn guard(&self) -> Arc<Guard> {
        Arc::clone(&lock(&self.newest))
    }

    /// Returns the keys of this process's handlers that run in a transaction.
    pub(super) fn running(&self) -> &ActiveTransactions {
        &self.running
    }

    /// Begins a transaction with the write lock, because a transaction that reads first may not get the lock later.
    pub(super) async fn begin(&self) -> Result<Open<Sqlite>, StoreError> {
        self.begin_with(sqlx::query("BEGIN IMMEDIATE")).await.map(|(open, _)| open)
    }

    /// Begins a transaction by BEGIN IMMEDIATE and another statement in one call. Returns the first row of that statement.
    pub(super) async fn begin_with(
        &self,
        begin: Query<'_, Sqlite, SqliteArguments>,
    ) -> Result<(Open<Sqlite>, Option<SqliteRow>), StoreError> {
        let call = Call::hold_back();
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let connection = match self.kept.take() {
            Some(connection) => connection,
            None => self.pool.acquire().await.map_err(store_error)?,
        };
        if !call.send() {
            return Err(StoreError::unavailable("the caller has stopped waiting"));
        }
        let mut connection = CloseOnDrop::new(connection);
        // Only the holder of the turn takes the connection.
        let guard = self.guard();
        let row = begin.fetch_optional(&mut *connection).await.map_err(store_error)?;
        guard.begun(&mut connection).await.map_err(store_error)?;
        Ok((Open::new(connection, guard, Box::new(turn)), row))
    }
}
