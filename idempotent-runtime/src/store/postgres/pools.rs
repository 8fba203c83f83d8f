//! The application's pool for transactions of handlers, and the store's own pools for everything else.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgPool, PgTransactionManager, Postgres};
use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};
use sqlx_core::transaction::TransactionManager as _;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::store::error::StoreError;
use crate::store::line::Call;
use crate::store::postgres::failure::{is_demoted, store_error};
use crate::store::postgres::in_clear::{is_only_preferred, prove};
use crate::store::postgres::in_transaction::InTransaction;
use crate::store::postgres::own::{GRACE, OwnPool};
use crate::store::postgres::pooler::{ALIVE_WITHIN, Pooler};
use crate::transaction::close_on_drop::CloseOnDrop;
use crate::transaction::open::Open;

/// The pools of one store. All of them reach the same database in the same way.
///
/// A statement of the store must commit by itself, and in a shared pool it may not. If a future that awaits `pool.begin()` is
/// dropped, as happens to an axum handler whose client disconnects, sqlx 0.9 returns the connection with the transaction open
/// (<https://github.com/transact-rs/sqlx/issues/4393>). A claim that is granted in that transaction is rolled back later, and the
/// handler runs twice.
pub(super) struct Pools {
    application: PgPool,
    own: Arc<OwnPool>,
    operators: OwnPool,
    claims: Arc<Semaphore>,
    pooler: Arc<Pooler>,
}

/// One connection for a listing, and one for counts and deletions.
const OF_OPERATORS: u32 = 2;

impl Pools {
    pub(super) fn new(application: PgPool, pooler: Arc<Pooler>) -> Self {
        let connections = application.options().get_max_connections();
        let own = |connections| OwnPool::new(application.clone(), connections, Arc::clone(&pooler));
        Self {
            own: Arc::new(own(connections)),
            operators: own(connections.min(OF_OPERATORS)),
            claims: Arc::new(Semaphore::new(connections as usize)),
            application,
            pooler,
        }
    }

    pub(super) fn application(&self) -> &PgPool {
        &self.application
    }

    /// Returns the application's pool, unless it may send something without encryption that needs encryption.
    pub(super) async fn encrypted_application(&self) -> Result<&PgPool, sqlx::Error> {
        self.own.try_encryption().await?;
        Ok(&self.application)
    }

    /// Returns the store's own pool, for single statements.
    pub(super) fn own(&self) -> &OwnPool {
        &self.own
    }

    /// Returns the same pool, for a task that continues when its caller no longer waits.
    pub(super) fn shared(&self) -> Arc<OwnPool> {
        Arc::clone(&self.own)
    }

    /// Returns the pool for statements that may be slow, so that no claim waits for them.
    pub(super) fn operators(&self) -> &OwnPool {
        &self.operators
    }

    /// Returns whether the server may be behind a pooler. Then no statement may have a name.
    pub(super) fn is_pooled(&self) -> bool {
        self.pooler.is_there()
    }

    /// Returns whether it was found out if there is a pooler.
    pub(super) fn knows_pooler(&self) -> bool {
        self.pooler.is_known()
    }

    /// Returns whether `LISTEN` has no effect.
    pub(super) fn cannot_listen(&self) -> bool {
        self.pooler.is_surely_there()
    }

    /// Waits for the turn of a claim to take a connection. The pool serves its callers in order. Without turns, a completion would
    /// wait for every earlier claim; now it waits for no more claims than the pool has connections.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        Arc::clone(&self.claims).acquire_owned().await.map_err(StoreError::unavailable)
    }

    /// Begins a transaction on a connection of the application's pool with these statements.
    ///
    /// The caller itself waits for the connection. If it gives up, it leaves the pool's queue at once, and no transaction begins.
    /// If it gives up later, the statements still run to their end, or their connection is closed.
    pub(super) async fn begin(&self, statements: String, begun: InTransaction) -> Result<Open<Postgres>, StoreError> {
        let statements = AssertSqlSafe(statements).into_sql_str();
        // A connection to a server that was demoted is closed. All idle connections may lead to that server.
        for _ in 0..self.application.num_idle() {
            match self.try_to_begin(statements.clone(), begun.clone()).await? {
                // The store's own connections may lead to it too, and read outdated rows there.
                Err(error) if is_demoted(&error) => self.own.leave_demoted(),
                open => return open.map_err(store_error),
            }
        }
        self.try_to_begin(statements, begun).await?.map_err(store_error)
    }

    async fn try_to_begin(
        &self,
        statements: SqlStr,
        begun: InTransaction,
    ) -> Result<Result<Open<Postgres>, sqlx::Error>, StoreError> {
        let call = Call::hold_back();
        let connection = self.acquire().await.map_err(store_error)?;
        if !call.send() {
            return Err(StoreError::unavailable("the caller has stopped waiting"));
        }
        let mut connection = CloseOnDrop::new(connection);
        let unproven = Some(self.application.connect_options()).filter(|options| is_only_preferred(options));
        // Behind a pooler, the server describes the pooler's connection instead.
        let unproven = unproven.filter(|_| !self.is_pooled());
        let beginning = Box::pin(async move {
            if let Some(options) = unproven {
                prove(&mut connection, &options).await?;
            }
            PgTransactionManager::begin(&mut connection, Some(statements)).await?;
            Ok(Open::new(connection, Arc::new(begun), Box::new(())))
        });
        Ok(Beginning(Some(beginning)).await)
    }

    /// Takes a connection of the application's pool. The pool tests an idle connection without a time limit, so this sets one.
    async fn acquire(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        self.own.try_encryption().await?;
        while self.application.num_idle() > 0 {
            if let Ok(acquired) = timeout(ALIVE_WITHIN, self.application.acquire()).await {
                return acquired;
            }
        }
        self.application.acquire().await
    }
}

/// The statements that begin a transaction. If their caller stops waiting, they still run to their end, or their connection is closed.
struct Beginning(Option<BoxFuture<'static, Result<Open<Postgres>, sqlx::Error>>>);

impl Future for Beginning {
    type Output = Result<Open<Postgres>, sqlx::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let beginning = self.0.as_mut().expect("a future is not polled after it was ready");
        let begun = ready!(beginning.as_mut().poll(cx));
        self.0 = None;
        Poll::Ready(begun)
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        // Without a runtime, the connection is closed here.
        if let (Some(beginning), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(timeout(GRACE, beginning));
        }
    }
}
