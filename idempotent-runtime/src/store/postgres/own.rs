//! Connections of the store's own, beside those of the application's pool.
//!
//! They are made as the application's pool makes its own at that moment: credentials that the application replaces apply here
//! too. A connection that gives no answer is closed soon. Nothing else ends it: a line that drops packets keeps it open for
//! many minutes, and a pool of ten such connections would serve nothing for as long.

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

/// A connection that was used a shorter time ago is not asked whether it works.
const SURELY_ALIVE: Duration = Duration::from_secs(1);

/// How much more time a connection gets for a statement whose caller has stopped waiting. A new connection costs more.
pub(super) const GRACE: Duration = Duration::from_millis(250);

/// A pool of single statements.
pub(super) struct Own {
    application: PgPool,
    connections: u32,
    followed: OnceLock<Followed>,
    pooler: Arc<Pooler>,
    distrust: Arc<Distrust>,
}

/// When a connection was found lost: what ended it may have ended all that were free then.
#[derive(Default)]
struct Distrust(Mutex<Option<Instant>>);

impl Distrust {
    fn begin(&self) {
        *lock(&self.0) = Some(Instant::now());
    }

    /// Whether a connection that is free for this time was used since.
    fn is_before(&self, idle_for: Duration) -> bool {
        lock(&self.0).is_none_or(|begun| idle_for < begun.elapsed())
    }
}

struct Followed {
    pool: PgPool,
    /// What it connects with.
    options: Mutex<Arc<PgConnectOptions>>,
}

impl Own {
    pub(super) fn new(application: PgPool, connections: u32, pooler: Arc<Pooler>) -> Self {
        Self { application, connections, followed: OnceLock::new(), pooler, distrust: Arc::default() }
    }

    fn pool(&self) -> &PgPool {
        // Not before it is used: a pool can only be made inside of a runtime.
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

    /// A connection for some statements, one after the other.
    pub(super) async fn lend(&self) -> Result<Lent, sqlx::Error> {
        let connection = self.pool().acquire().await?;
        let mut lent = Lent {
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

/// A connection that its pool gets back only if it answers.
pub(super) struct Lent {
    connection: Option<PoolConnection<Postgres>>,
    is_answered: bool,
    pooler: Arc<Pooler>,
    distrust: Arc<Distrust>,
}

type Answer = Vec<Either<PgQueryResult, PgRow>>;

impl Lent {
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

impl Drop for Lent {
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

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Own").finish_non_exhaustive()
    }
}

impl<'p> Executor<'p> for &'p Own {
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
