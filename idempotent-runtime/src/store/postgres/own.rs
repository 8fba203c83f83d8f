//! The store's own connections, besides those of the application's pool.
//!
//! Each connection is opened with the options that the application's pool has at that moment. So new credentials of the application
//! apply here too. A connection that does not answer is closed soon, because nothing else closes it. If the network drops packets,
//! such a connection stays open for many minutes, and a pool of ten of them serves nothing in that time.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use sqlx::pool::{PoolConnection, PoolConnectionMetadata};
use sqlx::postgres::{PgConnectOptions, PgPool, PgQueryResult, PgRow, PgStatement, PgTypeInfo, Postgres};
use sqlx::{Connection as _, Either, Execute, Executor, SqlStr};
use sqlx_core::describe::Describe;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::store::postgres::failure::{is_lost, is_read_only};
use crate::store::postgres::in_clear::{encrypted, explained, is_only_preferred};
use crate::store::postgres::pooler::{ALIVE_WITHIN, Pooler, Unnamed};
use crate::store::postgres::waiting::Waiting;
use crate::sync::{Mutex, lock};

/// A connection that was used within this time is not pinged.
const SURELY_ALIVE: Duration = Duration::from_secs(1);

/// How long a connection to a server that was demoted is kept.
const KEPT: Duration = Duration::from_millis(500);

/// How long a statement may continue after its caller has stopped waiting. Waiting costs less than a new connection.
pub(super) const GRACE: Duration = Duration::from_millis(250);

/// A pool for single statements.
pub(super) struct OwnPool {
    application: PgPool,
    connections: u32,
    followed: OnceLock<Followed>,
    pooler: Arc<Pooler>,
    distrust: Arc<Distrust>,
    waiting: Waiting,
    /// Options of the application's pool that were tried: they lead to an encrypted connection, or need no encryption.
    tried: Mutex<Option<Arc<PgConnectOptions>>>,
}

/// What the failure of one statement says about other connections.
#[derive(Default)]
struct Distrust {
    /// When a lost connection was last found. The cause may have ended all connections that were idle at that moment.
    lost: Mutex<Option<Instant>>,
    /// When a connection last led to a server that was demoted. Such a connection still answers, and all connections that were made
    /// before lead to the same server.
    demoted: Mutex<Option<Instant>>,
}

impl Distrust {
    fn learn(&self, error: &sqlx::Error) {
        if is_lost(error) {
            *lock(&self.lost) = Some(Instant::now());
        } else if is_read_only(error) {
            *lock(&self.demoted) = Some(Instant::now());
        }
    }

    /// Returns whether the connection need not be pinged: it was used recently, and after the last loss of a connection.
    fn trusts(&self, about: &PoolConnectionMetadata) -> bool {
        about.idle_for < SURELY_ALIVE && lock(&self.lost).is_none_or(|lost| about.idle_for < lost.elapsed())
    }

    /// Returns whether the connection may lead to a server that was demoted. A new connection is kept for a while, because the address
    /// may still lead to that server.
    fn rejects(&self, about: &PoolConnectionMetadata) -> bool {
        about.age > KEPT && lock(&self.demoted).is_some_and(|demoted| about.age > demoted.elapsed())
    }
}

/// A pool that takes over the options of the application's pool.
struct Followed {
    pool: PgPool,
    /// The options with which it connects.
    options: Mutex<Arc<PgConnectOptions>>,
}

impl OwnPool {
    pub(super) fn new(application: PgPool, connections: u32, pooler: Arc<Pooler>) -> Self {
        Self {
            application,
            connections,
            followed: OnceLock::new(),
            pooler,
            distrust: Arc::default(),
            waiting: Waiting::default(),
            tried: Mutex::default(),
        }
    }

    fn pool(&self) -> Result<&PgPool, sqlx::Error> {
        let now = self.application.connect_options();
        if let Some(followed) = self.followed.get()
            && Arc::ptr_eq(&lock(&followed.options), &now)
        {
            return Ok(&followed.pool);
        }
        let encrypted = encrypted(&now)?;
        // Created on first use, because a pool can only be created inside a runtime.
        let followed = self.followed.get_or_init(|| Followed {
            pool: self.connect_with(encrypted.clone()),
            options: Mutex::new(Arc::clone(&now)),
        });
        let mut options = lock(&followed.options);
        if !Arc::ptr_eq(&options, &now) {
            followed.pool.set_connect_options(encrypted);
            *options = now;
        }
        drop(options);
        Ok(&followed.pool)
    }

    /// Fails if the application's pool may send something without encryption that needs encryption.
    pub(super) async fn try_encryption(&self) -> Result<(), sqlx::Error> {
        let now = self.application.connect_options();
        let is_tried = |tried: &Arc<PgConnectOptions>| Arc::ptr_eq(tried, &now);
        if lock(&self.tried).as_ref().is_some_and(is_tried) {
            return Ok(());
        }
        encrypted(&now)?;
        if is_only_preferred(&now) {
            // A connection of this pool requires the encryption that the application's pool only prefers.
            drop(self.acquire().await?);
        }
        *lock(&self.tried) = Some(now);
        Ok(())
    }

    /// Records that a connection led to a server that was demoted. All connections that were made before are closed.
    pub(super) fn leave_demoted(&self) {
        *lock(&self.distrust.demoted) = Some(Instant::now());
    }

    fn connect_with(&self, options: PgConnectOptions) -> PgPool {
        let pool = self.application.options().clone().min_connections(0).max_connections(self.connections);
        // The pool's own test has no limit for the wait.
        let distrust = Arc::clone(&self.distrust);
        let pool = pool.test_before_acquire(false).before_acquire(move |connection, about| {
            let (is_trusted, is_rejected) = (distrust.trusts(&about), distrust.rejects(&about));
            Box::pin(async move {
                let answers = async { matches!(timeout(ALIVE_WITHIN, connection.ping()).await, Ok(Ok(()))) };
                Ok(!is_rejected && (is_trusted || answers.await))
            })
        });
        pool.connect_lazy_with(options)
    }

    /// Takes a connection for several statements in sequence.
    pub(super) async fn acquire(&self) -> Result<OwnConnection, sqlx::Error> {
        let connection = self.waiting.acquire(self.pool()?).await;
        let connection = connection.map_err(|error| explained(error, &self.application.connect_options()))?;
        let mut own = OwnConnection {
            connection: Some(connection),
            is_answered: true,
            pooler: Arc::clone(&self.pooler),
            distrust: Arc::clone(&self.distrust),
        };
        if !self.pooler.is_known() {
            let (pooler, options) = (Arc::clone(&self.pooler), encrypted(&self.application.connect_options())?);
            own.is_answered = false;
            pooler.recognise(own.connection(), &options).await?;
            own.is_answered = true;
        }
        Ok(own)
    }
}

/// A connection of this pool. It returns to the pool only if it answers.
pub(super) struct OwnConnection {
    connection: Option<PoolConnection<Postgres>>,
    is_answered: bool,
    pooler: Arc<Pooler>,
    distrust: Arc<Distrust>,
}

type Answer = Vec<Either<PgQueryResult, PgRow>>;

impl OwnConnection {
    pub(super) async fn fetch_optional<'q>(
        &mut self,
        query: impl Execute<'q, Postgres> + 'q,
    ) -> Result<Option<PgRow>, sqlx::Error> {
        Ok(self.run(query).await?.into_iter().find_map(Either::right))
    }

    pub(super) async fn fetch_all<'q>(
        &mut self,
        query: impl Execute<'q, Postgres> + 'q,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        Ok(self.run(query).await?.into_iter().filter_map(Either::right).collect())
    }

    async fn run<'q>(&mut self, query: impl Execute<'q, Postgres> + 'q) -> Result<Answer, sqlx::Error> {
        let pooler = Arc::clone(&self.pooler);
        self.is_answered = false;
        let answer = if pooler.is_there() {
            Unnamed(query).run_on(self.connection()).await
        } else {
            self.connection().fetch_many(query).try_collect().await
        };
        if let Err(error) = &answer {
            pooler.learn(error);
            self.distrust.learn(error);
        }
        self.is_answered = answer.as_ref().err().is_none_or(|error| error.as_database_error().is_some());
        answer
    }

    fn connection(&mut self) -> &mut sqlx::PgConnection {
        self.connection.as_mut().expect("it has one until it is dropped")
    }
}

impl Drop for OwnConnection {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        // A transaction around an unnamed statement may be open.
        let is_in_doubt = !self.is_answered && self.pooler.is_there();
        match Handle::try_current() {
            Ok(runtime) if !is_in_doubt => {
                let limit = if self.is_answered { ALIVE_WITHIN } else { GRACE };
                let returned = connection.return_to_pool();
                // If this is cancelled, the connection is closed.
                runtime.spawn(async move { timeout(limit, returned).await.ok() });
            }
            _ => drop(connection.detach()),
        }
    }
}

impl fmt::Debug for OwnPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnPool").finish_non_exhaustive()
    }
}

impl<'p> Executor<'p> for &'p OwnPool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let answer = async move { self.acquire().await?.run(query).await };
        answer.map_ok(|answer| stream::iter(answer.into_iter().map(Ok))).try_flatten_stream().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        async move { self.acquire().await?.fetch_optional(query).await }.boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'p: 'e,
    {
        async move { self.pool()?.prepare_with(sql, parameters).await }.boxed()
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        async move { self.pool()?.describe(sql).await }.boxed()
    }
}
