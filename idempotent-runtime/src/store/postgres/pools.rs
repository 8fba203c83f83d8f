//! The application's pool, for transactions of handlers, and one of the store's own, for everything else.

use std::sync::{Arc, OnceLock};

use sqlx::postgres::{PgPool, PgTransactionManager, Postgres};
use sqlx::{AssertSqlSafe, SqlSafeStr as _};
use sqlx_core::transaction::TransactionManager as _;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::store::error::StoreError;
use crate::store::line::Call;
use crate::store::postgres::failure::store_error;
use crate::store::postgres::in_transaction::InTransaction;
use crate::transaction::open::{Doubtful, Open};

/// Both reach the same database in the same way.
///
/// A statement of ours must commit by itself. In a pool that others use it may not: when a future that awaits `pool.begin()`
/// is dropped, as any axum handler's may be when its client leaves, sqlx 0.9 gives the connection back with the transaction
/// open (<https://github.com/transact-rs/sqlx/issues/4393>). A claim that is granted there is rolled back with it later, and
/// the handler runs twice.
pub(super) struct Pools {
    application: PgPool,
    own: OnceLock<PgPool>,
    claims: Semaphore,
}

impl Pools {
    pub(super) fn new(application: PgPool) -> Self {
        let claims = Semaphore::new(application.options().get_max_connections() as usize);
        Self { application, own: OnceLock::new(), claims }
    }

    pub(super) fn application(&self) -> &PgPool {
        &self.application
    }

    /// Of single statements only.
    pub(super) fn own(&self) -> &PgPool {
        // Not before it is used: a pool can only be made inside of a runtime.
        self.own.get_or_init(|| {
            let options = self.application.options().clone().min_connections(0);
            options.connect_lazy_with((*self.application.connect_options()).clone())
        })
    }

    /// The turn of a claim to take a connection. The pool is fair: what ends a claim would wait behind every claim that came
    /// before it, and behind no more than these.
    pub(super) async fn turn(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        self.claims.acquire().await.map_err(StoreError::unavailable)
    }

    /// Begins a transaction on a connection of the application's by these statements.
    ///
    /// The caller waits for the connection itself: one that gives up leaves the pool's queue at once, and nothing begins for it.
    /// The statements go to their end even if the caller gives up meanwhile.
    pub(super) async fn begin(&self, statements: String, begun: InTransaction) -> Result<Open<Postgres>, StoreError> {
        let call = Call::hold_back();
        let connection = self.application.acquire().await.map_err(store_error)?;
        if !call.send() {
            return Err(StoreError::unavailable("the caller has stopped waiting"));
        }
        let mut connection = Doubtful::new(connection);
        let beginning = tokio::spawn(async move {
            PgTransactionManager::begin(&mut connection, Some(AssertSqlSafe(statements).into_sql_str()))
                .await
                .map_err(store_error)?;
            Ok(Open::new(connection, Arc::new(begun), Box::new(())))
        });
        beginning.await.map_err(StoreError::unavailable)?
    }
}
