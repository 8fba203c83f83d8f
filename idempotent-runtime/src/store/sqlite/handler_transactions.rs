//! The connection of handlers' transactions. There is one transaction at a time, because SQLite has one writer.

use std::sync::Arc;

use sqlx::SqlSafeStr as _;
use sqlx::sqlite::{Sqlite, SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteTransactionManager};
use sqlx_core::transaction::TransactionManager as _;

use crate::store::active_transactions::ActiveTransactions;
use crate::store::error::StoreError;
use crate::store::line::Call;
use crate::store::sqlite::failure::store_error;
use crate::store::sqlite::guard::Guard;
use crate::sync::{Mutex, lock};
use crate::transaction::close_on_drop::CloseOnDrop;
use crate::transaction::open::Open;

/// The right to write in this process. The writer's thread has it for a batch, or a handler for its transaction. This
/// lock is fair, which SQLite's own lock is not.
pub(super) type Turn = Arc<tokio::sync::Mutex<()>>;

pub(super) struct HandlerTransactions {
    pool: SqlitePool,
    /// The guard of the connection that the pool opened last.
    newest: Arc<Mutex<Arc<Guard>>>,
    turn: Turn,
    pub(super) running: Arc<ActiveTransactions>,
}

impl HandlerTransactions {
    pub(super) fn new(options: SqliteConnectOptions, turn: Turn) -> Self {
        let newest = Arc::<Mutex<Arc<Guard>>>::default();
        let (opened, given_back) = (Arc::clone(&newest), Arc::clone(&newest));
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            // No line can have broken, and a statement on the connection fails if its thread is gone.
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(move |connection, _| {
                let newest = Arc::clone(&opened);
                Box::pin(async move {
                    *lock(&newest) = Guard::watch(connection).await?;
                    Ok(())
                })
            })
            // A connection whose settings have changed is closed.
            .after_release(move |connection, _| {
                let guard = Arc::clone(&lock(&given_back));
                Box::pin(async move { guard.finds_as_it_was(connection).await })
            });
        Self { pool: pool.connect_lazy_with(options), newest, turn, running: Arc::default() }
    }

    pub(super) fn pool(&self) -> SqlitePool {
        self.pool.clone()
    }

    /// Returns the keys of this process's handlers that run in a transaction.
    pub(super) fn running(&self) -> &ActiveTransactions {
        &self.running
    }

    /// Begins a transaction with the write lock, because a transaction that reads first may not get the lock later.
    pub(super) async fn begin(&self) -> Result<Open<Sqlite>, StoreError> {
        let call = Call::hold_back();
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let connection = self.pool.acquire().await.map_err(store_error)?;
        if !call.send() {
            return Err(StoreError::unavailable("the caller has stopped waiting"));
        }
        let mut connection = CloseOnDrop::new(connection);
        // The pool has one connection. Only the holder of the turn takes it.
        let guard = Arc::clone(&lock(&self.newest));
        SqliteTransactionManager::begin(&mut connection, Some("BEGIN IMMEDIATE".into_sql_str()))
            .await
            .map_err(store_error)?;
        guard.begun(&mut connection).await.map_err(store_error)?;
        Ok(Open::new(connection, guard, Box::new(turn)))
    }
}
