//! Connections of the store's own, beside those of the application's pool.
//!
//! Each is opened with the options that the application's pool has at that moment. So credentials that the application replaces
//! apply here too. A connection that gives no answer is closed soon, because nothing else ends it: if the network drops packets,
//! it stays open for many minutes, and a pool of ten such connections serves nothing meanwhile.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgQueryResult, PgRow, PgStatement, PgTypeInfo, Postgres};
use sqlx::{Connection as _, Either, Execute, Executor, SqlStr};
use sqlx_core::describe::Describe;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::store::postgres::failure::is_lost;
use crate::store::postgres::pooler::{ALIVE_WITHIN, Pooler, Unnamed};
use crate::sync::{Mutex, lock};

/// A connection that was used more recently is not pinged.
const SURELY_ALIVE: Duration = Duration::from_secs(1);

/// How long a statement may continue after its caller has stopped waiting: a new connection costs more than that.
pub(super) const GRACE: Duration = Duration::from_millis(250);

/// A pool for single statements.
pub(super) struct OwnPool {
    application: PgPool,
    connections: u32,
    followed: OnceLock<Followed>,
    pooler: Arc<Pooler>,
    distrust: Arc<Distrust>,
}

/// When a connection was last found lost. The cause may have ended all connections that were idle at that moment.
#[derive(Default)]
struct Distrust(Mutex<Option<Instant>>);

impl Distrust {
    fn begin(&self) {
        *lock(&self.0) = Some(Instant::now());
    }

    /// Whether a connection that is idle for this time was used after that moment.
    fn is_before(&self, idle_for: Duration) -> bool {
        lock(&self.0).is_none_or(|begun| idle_for < begun.elapsed())
    }
}

/// The pool, which follows the options of the application's pool.
struct Followed {
    pool: PgPool,
    /// The options with which it connects.
    options: Mutex<Arc<PgConnectOptions>>,
}

impl OwnPool {
    pub(super) fn new(application: PgPool, connections: u32, pooler: Arc<Pooler>) -> Self {
        Self { application, connections, followed: OnceLock::new(), pooler, distrust: Arc::default() }
    }

    fn pool(&self) -> &PgPool {
        // Created on first use, because a pool can only be created inside a runtime.
        let followed = self.followed.get_or_init(|| {
            let options = self.application.connect_options();
            Followed { pool: self.connect_with((*options).clone()), options: Mutex::new(options) }
        });
        let now = self.application.connect_options();
        let mut options = lock(&followed.options);
        if !Arc::ptr_eq(&options, &now) {
            followed.pool.set_connect_options((*now).clone());
            *options = now;
        }
        drop(options);
        &followed.pool
    }

    fn connect_with(&self, options: PgConnectOptions) -> PgPool {
        let pool = self.application.options().clone().min_connections(0).max_connections(self.connections);
        // The pool's own test waits for the answer without a limit.
        let distrust = Arc::clone(&self.distrust);
        let pool = pool.test_before_acquire(false).before_acquire(move |connection, about| {
            let is_trusted = about.idle_for < SURELY_ALIVE && distrust.is_before(about.idle_for);
            Box::pin(
                async move { Ok(is_trusted || matches!(timeout(ALIVE_WITHIN, connection.ping()).await, Ok(Ok(())))) },
            )
        });
        pool.connect_lazy_with(options)
    }

    /// Takes a connection for several statements, one after the other.
    pub(super) async fn lend(&self) -> Result<OwnConnection, sqlx::Error> {
        let connection = self.pool().acquire().await?;
        let mut lent = OwnConnection {
            connection: Some(connection),
            is_answered: true,
            pooler: Arc::clone(&self.pooler),
            distrust: Arc::clone(&self.distrust),
        };
        if !self.pooler.is_known() {
            let (pooler, options) = (Arc::clone(&self.pooler), self.application.connect_options());
            lent.is_answered = false;
            pooler.recognise(lent.connection(), &options).await?;
            lent.is_answered = true;
        }
        Ok(lent)
    }
}

/// A connection of this pool. The pool gets it back only if it answers.
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
            if is_lost(error) {
                self.distrust.begin();
            }
        }
        self.is_answered = answer.as_ref().err().is_none_or(|error| error.as_database_error().is_some());
        answer
    }

    fn connection(&mut self) -> &mut sqlx::PgConnection {
        self.connection.as_mut().expect("it is lent until it is dropped")
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
                // Cut off, it closes the connection.
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
        let answer = async move { self.lend().await?.run(query).await };
        answer.map_ok(|answer| stream::iter(answer.into_iter().map(Ok))).try_flatten_stream().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        async move { self.lend().await?.fetch_optional(query).await }.boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'p: 'e,
    {
        self.pool().prepare_with(sql, parameters)
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        self.pool().describe(sql)
    }
}
