//! The store itself.

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::poll;
use sqlx::postgres::{PgPool, PgPoolOptions, PgRow};
use sqlx::{Postgres, Row as _};

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::policy::values::AfterCrash;
use crate::record::HeadersText;
use crate::record::Record;
use crate::store::active_transactions::ActiveTransactions;
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::claim_decision::{Decision, StoredState, decide};
use crate::store::columns::{span_millis, token_text, unix_millis};
use crate::store::contract::{Store, StoreAdmin};
use crate::store::entry::{Cursor, Entry, Page, UNKNOWN_OUTCOMES_COUNTED, UnknownOutcomes};
use crate::store::error::StoreError;
use crate::store::given_back::{REMEMBERED, given_back};
use crate::store::line::Call;
use crate::store::postgres::advisory_locks::lock;
use crate::store::postgres::expired_deletion::ExpiredDeletion;
use crate::store::postgres::failure::{claim_error, is_ended_before, is_lost, is_transient, store_error};
use crate::store::postgres::listener::Listener;
use crate::store::postgres::migrate;
use crate::store::postgres::migrate::PostgresMigrateError;
use crate::store::postgres::pooler::Pooler;
use crate::store::postgres::pools::Pools;
use crate::store::postgres::row;
use crate::store::postgres::row::{HeldInTransaction, digest};
use crate::store::postgres::statements::Statements;
use crate::store::row::each;
use crate::store::row::unknown_outcomes;
use crate::transaction::transactions::Transactions;

/// Keeps claims and records in PostgreSQL 13 or newer, in tables that a person can read.
///
/// It takes the application's own pool, from which handlers get their transactions ([`Tx`](crate::Tx)). For its own
/// statements it opens a second pool with the same options when it is first used. So each of these statements commits by
/// itself, whatever happens to the application's connections, and a process can hold twice as many connections. Two more serve
/// listings, counts and deletions. Requests that wait (`in_flight = wait`) hold no connection; one extra connection wakes them.
/// New connections of all of them use the options that the application's pool has at that moment
/// ([`set_connect_options`](PgPool::set_connect_options)). A connection that gives no answer is closed.
///
/// It works behind a pooler that lends connections for one transaction, such as PgBouncer, and finds that out by itself
/// ([`pooled`](PostgresStoreBuilder::pooled)). One process at a time deletes expired rows,
/// in small batches, in the background. A clone is cheap and shares everything.
///
/// While a handler has a connection for its `Tx`, the session's `default_transaction_read_only` is on. The pool gets the
/// connection back unchanged. A handler that takes a `Tx` and a second connection of the same small pool stalls under load:
/// see [the guide](crate::guide::transactions).
///
/// The tables are in the schema `idempotency` by default. [`migrate`](Self::migrate) creates them. For migrations of your
/// own, run [`sql`](Self::sql). Neither touches sqlx's `_sqlx_migrations`.
///
/// # Durability
///
/// A response that was sent is as durable as a commit of the database: leave `synchronous_commit` on for the role. With
/// asynchronous replicas, a failover can lose the last commits, and then a retry runs again. `synchronous_standby_names`
/// prevents that.
///
/// # Examples
///
/// ```no_run
/// use idempotent_runtime::store::PostgresStore;
/// use sqlx::PgPool;
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = PgPool::connect("postgres://localhost/app").await?;
///
/// let store = PostgresStore::new(pool.clone());
/// store.migrate().await?;
/// idempotent_runtime::install(store)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresStore(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) pools: Arc<Pools>,
    /// Quoted.
    pub(super) schema: String,
    pub(super) statements: Arc<Statements>,
    pub(super) listener: Listener,
    pub(super) expired_deletion: ExpiredDeletion,
    pub(super) running: Arc<ActiveTransactions>,
}

/// Collects the options of a [`PostgresStore`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use idempotent_runtime::store::PostgresStore;
/// use sqlx::PgPool;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), sqlx::Error> {
/// let pool = PgPool::connect_lazy("postgres://localhost/app")?;
/// let store = PostgresStore::builder(pool).schema("payments").delete_expired_every(Duration::from_secs(60)).build();
/// assert!(store.sql().contains("\"payments\""));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct PostgresStoreBuilder {
    pool: PgPool,
    schema: String,
    deletion_interval: Duration,
    is_pooled: bool,
}

impl PostgresStoreBuilder {
    /// The schema of the tables; `idempotency` by default. Every name is allowed: it is quoted.
    ///
    /// # Panics
    ///
    /// When it is empty, longer than the 63 bytes that PostgreSQL keeps of a name, or has a NUL in it.
    pub fn schema(mut self, name: impl Into<String>) -> Self {
        let name = name.into();
        assert!(
            (1..=63).contains(&name.len()) && !name.contains('\0'),
            "{name:?} is no name of a schema: PostgreSQL takes 1 to 63 bytes without NUL"
        );
        self.schema = name;
        self
    }

    /// How long expired rows can stay; 30 seconds by default.
    pub fn delete_expired_every(mut self, interval: Duration) -> Self {
        self.deletion_interval = interval.max(Duration::from_millis(1));
        self
    }

    /// The server is reached through a pooler that lends a connection for one transaction, such as PgBouncer with
    /// `pool_mode = transaction`.
    ///
    /// Without this call the store finds that out when it connects first: it compares the server's processes behind
    /// four connections. Behind a pooler no statement is prepared under a name, each one is a transaction of four round trips, and
    /// waiting requests (`in_flight = wait`) look every 50 milliseconds, because `LISTEN` does not work there.
    ///
    /// ```
    /// use idempotent_runtime::store::PostgresStore;
    /// use sqlx::PgPool;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), sqlx::Error> {
    /// let pool = PgPool::connect_lazy("postgres://localhost:6432/app")?;
    /// let store = PostgresStore::builder(pool).pooled().build();
    /// # Ok(())
    /// # }
    /// ```
    pub fn pooled(mut self) -> Self {
        self.is_pooled = true;
        self
    }

    /// The store. It connects when it is first used.
    pub fn build(self) -> PostgresStore {
        let schema = format!("\"{}\"", self.schema.replace('"', "\"\""));
        let pooler = Arc::new(if self.is_pooled { Pooler::present() } else { Pooler::unknown() });
        let statements = Arc::new(Statements::new(&schema, &pooler));
        let lock = lock(b"sweep", &[schema.as_bytes()]);
        let pools = Arc::new(Pools::new(self.pool, pooler));
        PostgresStore(Arc::new(Inner {
            listener: Listener::new(channel(&schema)),
            expired_deletion: ExpiredDeletion::new(
                Arc::clone(&pools),
                statements.delete_expired.clone(),
                lock,
                self.deletion_interval,
            ),
            running: Arc::default(),
            pools,
            schema,
            statements,
        }))
    }
}

/// How often a statement is sent that met a conflict, before it counts as failed.
const ROUNDS: usize = 20;

/// Where no notification comes.
const BETWEEN_LOOKS_BEHIND_POOLER: Duration = Duration::from_millis(50);

/// A channel is a name too, of 63 bytes at most.
fn channel(schema: &str) -> String {
    let digest = lock(b"channel", &[schema.as_bytes()]);
    format!("idempotency_{digest:016x}")
}

impl PostgresStore {
    /// A store in the application's own database.
    ///
    /// The store's own connections are pinged only if they were free for a second. `before_acquire` of the application's pool
    /// does not apply to them, but `after_connect` does.
    pub fn new(pool: PgPool) -> Self {
        Self::builder(pool).build()
    }

    /// A store with a pool of its own, of ten connections.
    ///
    /// # Errors
    ///
    /// When the URL is malformed, or the server cannot be reached or rejects.
    pub async fn connect(url: &str) -> Result<Self, sqlx::Error> {
        // The test would be a round trip for each transaction of a handler, and a statement on a broken connection fails anyway.
        Ok(Self::new(PgPoolOptions::new().test_before_acquire(false).connect(url).await?))
    }

    /// A store in the application's own database, with options to follow.
    pub fn builder(pool: PgPool) -> PostgresStoreBuilder {
        PostgresStoreBuilder {
            pool,
            schema: "idempotency".to_owned(),
            deletion_interval: Duration::from_secs(30),
            is_pooled: false,
        }
    }

    /// Creates the tables, or updates them. Every process may call it, also at the same time.
    ///
    /// # Errors
    ///
    /// [`PostgresMigrateError`] says what to do.
    ///
    /// # Cancel safety
    ///
    /// The migration is one transaction. If the future is dropped, it has taken effect or not.
    pub async fn migrate(&self) -> Result<(), PostgresMigrateError> {
        let lock = lock(b"migrate", &[self.0.schema.as_bytes()]);
        migrate::migrate(self.0.pools.application(), &self.0.schema, lock).await
    }

    /// The SQL that [`migrate`](Self::migrate) runs on a database without the tables, for migrations of your own.
    pub fn sql(&self) -> String {
        migrate::sql(&self.0.schema)
    }

    /// The SQL that makes of the tables of this version those that this version of the library needs, for migrations of your
    /// own. `SELECT version FROM idempotency.schema_version` gives the version of the tables; with 0 this is [`sql`](Self::sql).
    /// Empty when nothing is left to do.
    ///
    /// ```
    /// use idempotent_runtime::store::PostgresStore;
    /// use sqlx::PgPool;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), sqlx::Error> {
    /// let store = PostgresStore::new(PgPool::connect_lazy("postgres://localhost/app")?);
    /// assert_eq!(store.sql_since(0), store.sql());
    /// assert!(store.sql_since(2).contains("version = 3"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn sql_since(&self, version: usize) -> String {
        migrate::sql_since(&self.0.schema, version)
    }

    /// The pool that the store was made with.
    pub fn pool(&self) -> &PgPool {
        self.0.pools.application()
    }

    /// Repeats the statement until it takes effect or returns an existing row.
    async fn claim_or_existing(&self, key: &RecordKey, request: &ClaimRequest) -> Result<Claim, StoreError> {
        let digest = digest(key);
        let (lock, (requests, asked_for)) = (self.lock_of_key(key), self.lock_of_request(key, request.fingerprint));
        let call = Call::hold_back();
        let _turn = self.0.pools.turn().await?;
        let mut connection = self.0.pools.own().lend().await.map_err(store_error)?;
        call.send();
        let mut may_be_lost = true;
        // A row that another claim has committed after our snapshot is neither inserted nor seen, and a new snapshot sees
        // it. More rounds than two take a key that is claimed and released all the time.
        for _ in 0..ROUNDS {
            let claim = self
                .0
                .statements
                .claim
                .query()
                .bind(digest)
                .bind(key.as_str())
                .bind(request.fingerprint.to_string())
                .bind(token_text(request.token))
                .bind(span_millis(request.ttl))
                .bind(span_millis(request.lease))
                .bind(request.after_crash == AfterCrash::Rerun)
                .bind(requests)
                .bind(asked_for)
                .bind(lock);
            let row = match connection.fetch_optional(claim).await {
                Ok(Some(row)) => row,
                Ok(None) => continue,
                Err(error) if is_transient(&error) => continue,
                Err(error) if may_be_lost && may_be_sent_again(&error, request) => {
                    // Of a connection that was free too long, most often.
                    may_be_lost = false;
                    drop(connection);
                    connection = self.0.pools.own().lend().await.map_err(store_error)?;
                    continue;
                }
                Err(error) => return Err(claim_error(error)),
            };
            if let Some(attempt) = row::acquired(&row)? {
                return Ok(Claim::Acquired { attempt });
            }
            if let Some(holder) = row::held_by_transaction(&row)? {
                return Ok(held_in_transaction(request.fingerprint, &holder));
            }
            if row::is_given_back(&row)? {
                return Err(given_back());
            }
            match decide(Some(StoredState::from_row(&row)?), request) {
                Decision::Answer(claim) => return Ok(claim),
                Decision::Keep { token, fingerprint } => {
                    // It takes one of its own: with two each, as many requests as there are connections would all wait.
                    drop(connection);
                    return self.keep(key, token, fingerprint).await;
                }
                Decision::Take { .. } => {}
            }
        }
        Err(StoreError::unavailable(format!("the claim conflicted {ROUNDS} times with other claims of its key")))
    }

    /// Sees to it that a claim which is rejected as one of unknown outcome never expires.
    pub(super) async fn keep(
        &self,
        key: &RecordKey,
        token: Token,
        fingerprint: Fingerprint,
    ) -> Result<Claim, StoreError> {
        let (digest, token) = (digest(key), token_text(token));
        let keep =
            || async { self.0.statements.keep.query().bind(digest).bind(&token).execute(self.0.pools.own()).await };
        let is_kept = retried(keep).await?.rows_affected() > 0;
        // What was renewed, taken over or ended meanwhile is for the client's next request to find.
        Ok(if is_kept { Claim::Lapsed { fingerprint } } else { Claim::InFlight { fingerprint } })
    }

    pub(super) async fn held(&self, query: impl Fn() -> Query) -> Result<Held, StoreError> {
        let row = retried(|| async { query().fetch_optional(self.0.pools.own()).await }).await?;
        Ok(held(row.as_ref()))
    }
}

type Query = sqlx::query::Query<'static, Postgres, sqlx::postgres::PgArguments>;

/// Whether a claim whose connection is lost may be sent again at once: it has a token, by which the store knows it again.
///
/// The first one may still arrive. Under [`AfterCrash::Reject`] it must not: after a release by then, it would never expire.
fn may_be_sent_again(error: &sqlx::Error, request: &ClaimRequest) -> bool {
    is_ended_before(error) || (is_lost(error) && request.after_crash == AfterCrash::Rerun)
}

/// A statement of its own takes no effect when it fails by a conflict, and may be sent again. So may one whose connection is lost,
/// once: what changes something has a token.
async fn retried<T, F>(statement: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, sqlx::Error>>,
{
    retried_after(is_lost, statement).await
}

async fn retried_after<T, F>(
    may_be_sent_again: fn(&sqlx::Error) -> bool,
    mut statement: impl FnMut() -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, sqlx::Error>>,
{
    let (mut round, mut may_be_lost) = (1, true);
    loop {
        match statement().await {
            Err(error) if is_transient(&error) && round < ROUNDS => round += 1,
            Err(error) if may_be_lost && may_be_sent_again(&error) => may_be_lost = false,
            done => return done.map_err(store_error),
        }
    }
}

/// A statement that took effect tells so by its row.
pub(super) fn held(row: Option<&PgRow>) -> Held {
    if row.is_some() { Held::Yes } else { Held::No }
}

/// Whether a claim that holds, if it does, was renewed.
fn is_renewed(held: Option<&bool>) -> Result<Held, StoreError> {
    match held {
        None => Ok(Held::No),
        Some(true) => Ok(Held::Yes),
        Some(false) => Err(StoreError::unavailable("another statement has locked the row of the claim")),
    }
}

/// What is told of a handler that runs in a transaction: its lock tells in which parts another request differs, and no more
/// matters.
pub(super) fn held_in_transaction(asked_for: Fingerprint, holder: &HeldInTransaction) -> Claim {
    let fingerprint = match holder {
        HeldInTransaction::Same => asked_for,
        HeldInTransaction::Other(bits) => asked_for.with_bits(*bits),
    };
    Claim::InFlight { fingerprint }
}

pub(super) fn headers_text(record: &Record) -> Result<String, StoreError> {
    serde_json::to_string(&HeadersText::of(record)).map_err(StoreError::unavailable)
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("schema", &self.0.schema).finish_non_exhaustive()
    }
}

impl Store for PostgresStore {
    async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        if let Some(fingerprint) = self.0.running.fingerprint(key) {
            return Ok(Claim::InFlight { fingerprint });
        }
        let claim = self.claim_or_existing(key, &request).await?;
        if matches!(claim, Claim::Acquired { .. }) {
            self.0.expired_deletion.start();
        }
        Ok(claim)
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let (digest, token, lease) = (digest(key), token_text(token), span_millis(lease));
        let renew = || async {
            self.0.statements.renew.query().bind(digest).bind(&token).bind(lease).execute(self.0.pools.own()).await
        };
        let renewed = retried(renew).await?;
        Ok(if renewed.rows_affected() > 0 { Held::Yes } else { Held::No })
    }

    async fn renew_many(&self, renewals: &[Renewal]) -> Vec<Result<Held, StoreError>> {
        let digests: Vec<Vec<u8>> = renewals.iter().map(|renewal| digest(&renewal.key).to_vec()).collect();
        let tokens: Vec<String> = renewals.iter().map(|renewal| token_text(renewal.token)).collect();
        let leases: Vec<i64> = renewals.iter().map(|renewal| span_millis(renewal.lease)).collect();
        let renew = || async {
            let query = self.0.statements.renew_many.query().bind(&digests).bind(&tokens).bind(&leases);
            query.fetch_all(self.0.pools.own()).await
        };
        let rows = match retried(renew).await {
            Ok(rows) => rows,
            Err(error) => return each(renewals.len(), Err(error)),
        };
        let renewed: Result<HashMap<String, bool>, _> =
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect();
        match renewed.map_err(store_error) {
            Ok(renewed) => tokens.iter().map(|token| is_renewed(renewed.get(token))).collect(),
            Err(error) => each(renewals.len(), Err(error)),
        }
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        let (digest, token, headers) = (digest(key), token_text(token), headers_text(&record)?);
        let complete = || {
            let query = self.0.statements.complete.query().bind(digest).bind(token.clone()).bind(span_millis(ttl));
            let query = query.bind(record.fingerprint.to_string()).bind(unix_millis(record.recorded_at));
            let query = query.bind(i32::from(record.status.as_u16())).bind(headers.clone());
            query.bind(record.body_bytes().map(|body| body.to_vec())).bind(self.0.listener.channel().to_owned())
        };
        if self.held(complete).await? == Held::Yes {
            return Ok(Held::Yes);
        }
        // A first call that was cut off may have been committed while this one waited for its row, after this one's
        // snapshot: only a new statement sees that.
        let completed_by = || async {
            self.0.statements.completed_by.query().bind(digest).bind(&token).fetch_one(self.0.pools.own()).await
        };
        let is_completed: bool = retried(completed_by).await?.try_get(0).map_err(store_error)?;
        Ok(if is_completed { Held::Yes } else { Held::No })
    }

    async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        let (digest, token) = (digest(key), token_text(token));
        let release = || {
            let query = self.0.statements.release.query().bind(digest).bind(token.clone());
            query.bind(self.0.listener.channel().to_owned()).bind("release")
        };
        if self.held(release).await? == Held::Yes {
            return Ok(Held::Yes);
        }
        let give_back = || async {
            let query = self.0.statements.give_back.query().bind(digest).bind(&token).bind(span_millis(REMEMBERED));
            query.bind("give back").execute(self.0.pools.own()).await
        };
        if retried(give_back).await?.rows_affected() > 0 {
            return Ok(Held::No);
        }
        // If the claim has arrived since, it is there now.
        self.held(release).await
    }

    async fn changed(&self, key: &RecordKey) {
        if self.0.pools.is_deaf() {
            return tokio::time::sleep(BETWEEN_LOOKS_BEHIND_POOLER).await;
        }
        let digest = digest(key);
        let mut ended = pin!(self.0.listener.ended(self.0.pools.application(), &digest));
        // The first poll, which comes before the waiter's look, only subscribes: a connection that it took would be held, and
        // never given back, while the look waits for one.
        if poll!(ended.as_mut()).is_ready() {
            return;
        }
        tokio::task::yield_now().await;
        // The holder notifies only if a waiter is marked; each look sets the mark again.
        let _ = self.0.statements.await_end.query().bind(digest).execute(self.0.pools.own()).await;
        ended.await;
    }

    fn transactions(&self) -> Option<Transactions> {
        Some(Transactions::of::<Postgres, _>(Arc::new(self.clone())))
    }
}

impl StoreAdmin for PostgresStore {
    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        let digest = digest(key);
        let entry = || async { self.0.statements.entry.query().bind(digest).fetch_optional(self.0.pools.own()).await };
        retried(entry).await?.as_ref().map(Entry::from_row).transpose()
    }

    async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        let digest = digest(key);
        let purge = || async {
            let query = self.0.statements.purge.query().bind(digest).bind("purge");
            query.fetch_optional(self.0.pools.own()).await
        };
        // A second one would remove what has come meanwhile.
        Ok(retried_after(is_ended_before, purge).await?.is_some_and(|row| row.get("alive")))
    }

    async fn delete_expired(&self) -> Result<usize, StoreError> {
        self.0.expired_deletion.delete_expired().await.map_err(store_error)
    }

    async fn unknown_outcomes(&self) -> Result<UnknownOutcomes, StoreError> {
        let most = i64::try_from(UNKNOWN_OUTCOMES_COUNTED).unwrap_or(i64::MAX);
        let count = || async {
            self.0.statements.unknown_outcomes.query().bind(most).fetch_all(self.0.pools.operators()).await
        };
        unknown_outcomes(&retried(count).await?)
    }

    /// In the order of the keys' digests.
    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        // One more than asked for tells whether there is a next page.
        let rows = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let Cursor(after) = cursor.unwrap_or_else(|| Cursor(String::new()));
        let list = || async {
            self.0.statements.list.query().bind(&after).bind(rows).fetch_all(self.0.pools.operators()).await
        };
        let found = retried(list).await?;
        let mut page = Page::default();
        for row in found.iter().take(limit) {
            page.add_row(row)?;
        }
        if found.len() > limit {
            // A row whose key cannot be read has its place in the listing too.
            page.next = found[..limit].last().map(row::place).transpose()?.map(Cursor);
        }
        Ok(page)
    }
}
