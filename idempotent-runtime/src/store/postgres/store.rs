//! The store itself: how each operation of the contract becomes statements.

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::poll;
use sqlx::postgres::PgPool;
use sqlx::{Postgres, Row as _};

use crate::key::RecordKey;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::columns::{span_millis, token_text};
use crate::store::contract::Store;
use crate::store::error::StoreError;
use crate::store::postgres::advisory_locks::lock;
use crate::store::postgres::batched::Batched as _;
use crate::store::postgres::batched_end::{BatchedCompletion, BatchedRelease};
use crate::store::postgres::claim::claim;
use crate::store::postgres::end::{complete, release};
use crate::store::postgres::failure::store_error;
use crate::store::postgres::inner::Inner;
use crate::store::postgres::migrate;
use crate::store::postgres::migrate::PostgresMigrateError;
use crate::store::postgres::retry::retried;
use crate::store::postgres::row::digest;
use crate::store::row::{each, headers_text};
use crate::transaction::transactions::Transactions;

/// Keeps claims and records in PostgreSQL 13 or newer, in tables that a person can read.
///
/// The store takes the application's own pool, from which handlers get their transactions ([`Tx`](crate::Tx)). When the store
/// is first used, it opens a second pool with the same options for its own statements. So each of these statements commits by
/// itself, whatever happens to the application's connections, and a process can hold twice as many connections. Two more
/// connections serve listings, counts and deletions. Requests that wait (`in_flight = wait`) hold no connection; one extra
/// connection wakes them. Every new connection uses the options that the application's pool has at that moment
/// ([`set_connect_options`](PgPool::set_connect_options)). A connection that does not answer is closed.
///
/// Nothing is sent to another machine without encryption, unless the options say `sslmode=disable`. With `prefer`, which is sqlx's
/// default, and with `allow`, every call fails if the connection would not be encrypted. `require`, `verify-ca` and `verify-full`
/// need the feature `tls`.
///
/// The store works behind a pooler that lends a connection for one transaction, such as PgBouncer, and detects the pooler
/// ([`pooled`](crate::store::PostgresStoreBuilder::pooled)). One process at a time deletes expired rows,
/// in small batches, in the background. A clone is cheap and shares everything.
///
/// While a handler has a connection for its `Tx`, the session's `default_transaction_read_only` is on. The pool gets the
/// connection back unchanged. A handler that takes a `Tx` and a second connection of the same small pool stalls under load:
/// see [the guide](crate::guide::transactions).
///
/// The tables are in the schema `idempotency` by default. [`migrate`](Self::migrate) creates them. If you have migrations of your
/// own, run [`sql`](Self::sql) in them. Neither changes sqlx's `_sqlx_migrations`.
///
/// # Durability
///
/// A response that was sent is as durable as a commit of the database, if `synchronous_commit` is on for the role. With
/// asynchronous replicas, a failover can lose the last commits, and then a retry runs the handler again.
/// `synchronous_standby_names` prevents that.
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

/// How often a waiter looks at its key behind a pooler. No notification arrives there.
const BETWEEN_CHECKS_BEHIND_POOLER: Duration = Duration::from_millis(50);

impl PostgresStore {
    /// Creates the tables, or updates them. Every process may call this, also at the same time.
    ///
    /// # Errors
    ///
    /// [`PostgresMigrateError`] says what to do.
    ///
    /// # Cancel safety
    ///
    /// The migration is one transaction. If the future is dropped, the whole migration has taken effect, or nothing of it.
    pub async fn migrate(&self) -> Result<(), PostgresMigrateError> {
        let lock = lock(b"migrate", &[self.0.schema.as_bytes()]);
        migrate::migrate(self.0.pools.encrypted_application().await?, &self.0.schema, lock).await
    }

    /// Returns the SQL that [`migrate`](Self::migrate) runs on a database without the tables, for migrations of your own.
    pub fn sql(&self) -> String {
        migrate::sql(&self.0.schema)
    }

    /// Returns the SQL that updates tables of this `version` to the version that this library needs, for migrations of your own.
    /// The SQL is empty if the tables are up to date. For version 0 it is the same as [`sql`](Self::sql).
    ///
    /// `SELECT version FROM idempotency.schema_version` returns the version of the tables.
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
    /// assert!(store.sql_since(3).contains("version = 4"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn sql_since(&self, version: usize) -> String {
        migrate::sql_since(&self.0.schema, version)
    }

    /// Returns the pool that the store was made with.
    pub fn pool(&self) -> &PgPool {
        self.0.pools.application()
    }
}

/// The most bytes of headers and body in a record. PostgreSQL closes the connection if a message exceeds 1 GiB. All other parts of
/// the message need less than the difference.
const LONGEST: usize = (1 << 30) - (1 << 16);

#[derive(Debug, thiserror::Error)]
#[error("the record has {0} bytes, and PostgreSQL takes {LONGEST}")]
struct TooLong(usize);

/// Reads one row of `renew_many`. There is no row if the claim is lost. The row says `false` if another statement has locked the
/// claim.
fn is_renewed(held: Option<&bool>) -> Result<Held, StoreError> {
    match held {
        None => Ok(Held::No),
        Some(true) => Ok(Held::Yes),
        Some(false) => Err(StoreError::unavailable("another statement has locked the row of the claim")),
    }
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
        let claim = claim(&self.0, key, &request).await?;
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
        Ok(Held::of(renewed.rows_affected() > 0))
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
        let completion = BatchedCompletion { digest, token, ttl: span_millis(ttl), headers, record };
        let length = completion.bytes();
        if length > LONGEST {
            return Err(StoreError::record_rejected(TooLong(length)));
        }
        complete(&self.0, completion).await
    }

    async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        release(&self.0, BatchedRelease { digest: digest(key), token: token_text(token) }).await
    }

    async fn extend(&self, key: &RecordKey, ttl: Duration) -> Result<Held, StoreError> {
        let (digest, ttl) = (digest(key), span_millis(ttl));
        let extend = || async {
            let query = self.0.statements.extend.query().bind(digest).bind(ttl).bind("extend");
            query.execute(self.0.pools.own()).await
        };
        Ok(Held::of(retried(extend).await?.rows_affected() > 0))
    }

    async fn changed(&self, key: &RecordKey) {
        if self.0.pools.cannot_listen() {
            return tokio::time::sleep(BETWEEN_CHECKS_BEHIND_POOLER).await;
        }
        let digest = digest(key);
        let mut ended = pin!(self.0.listener.ended(self.0.pools.application(), &digest));
        // The first poll must only subscribe. Before the waiter polls this future again, it looks at the key, which takes a
        // connection. A connection that the first poll took would not be free for that look.
        if poll!(ended.as_mut()).is_ready() {
            return;
        }
        tokio::task::yield_now().await;
        // The holder of the claim notifies only if a mark says that a request waits. Each look sets the mark again.
        let _ = self.0.statements.await_end.query().bind(digest).execute(self.0.pools.own()).await;
        ended.await;
    }

    fn transactions(&self) -> Option<Transactions> {
        Some(Transactions::of::<Postgres, _>(Arc::new(self.clone())))
    }
}
