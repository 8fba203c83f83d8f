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
use crate::store::postgres::batched_end::{BatchedCompletion, BatchedRelease};
use crate::store::postgres::batcher::Batched as _;
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
/// It takes the application's own pool, from which handlers get their transactions ([`Tx`](crate::Tx)). For its own
/// statements it opens a second pool with the same options when it is first used. So each of these statements commits by
/// itself, whatever happens to the application's connections, and a process can hold twice as many connections. Two more serve
/// listings, counts and deletions. Requests that wait (`in_flight = wait`) hold no connection; one extra connection wakes them.
/// New connections of all of them use the options that the application's pool has at that moment
/// ([`set_connect_options`](PgPool::set_connect_options)). A connection that gives no answer is closed.
///
/// Nothing is sent in clear to another machine, unless the options say `sslmode=disable`: with `prefer`, which is sqlx's default,
/// and `allow`, every call fails if the connection would not be encrypted. Feature `tls` has what `require`, `verify-ca` and
/// `verify-full` need.
///
/// It works behind a pooler that lends connections for one transaction, such as PgBouncer, and finds that out by itself
/// ([`pooled`](crate::store::PostgresStoreBuilder::pooled)). One process at a time deletes expired rows,
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

/// How often a waiter looks at its key behind a pooler, where no notification arrives.
const BETWEEN_LOOKS_BEHIND_POOLER: Duration = Duration::from_millis(50);

impl PostgresStore {
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
        migrate::migrate(self.0.pools.encrypted_application().await?, &self.0.schema, lock).await
    }

    /// The SQL that [`migrate`](Self::migrate) runs on a database without the tables, for migrations of your own.
    pub fn sql(&self) -> String {
        migrate::sql(&self.0.schema)
    }

    /// The SQL that updates tables of this `version` to the version that this library needs, for migrations of your own.
    /// It is empty if the tables are up to date. With 0 it is [`sql`](Self::sql).
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

    /// The pool that the store was made with.
    pub fn pool(&self) -> &PgPool {
        self.0.pools.application()
    }
}

/// PostgreSQL takes no message of more than 1 GiB, and closes the connection over one. What else is in it takes less than the rest.
const LONGEST: usize = (1 << 30) - (1 << 16);

#[derive(Debug, thiserror::Error)]
#[error("the record has {0} bytes, and PostgreSQL takes {LONGEST}")]
struct TooLong(usize);

/// What one row of `renew_many` says: there is no row if the claim is lost, and `false` if another statement has locked it.
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
            return tokio::time::sleep(BETWEEN_LOOKS_BEHIND_POOLER).await;
        }
        let digest = digest(key);
        let mut ended = pin!(self.0.listener.ended(self.0.pools.application(), &digest));
        // The first poll must only subscribe. The waiter then looks at the key, which takes a connection, before it polls this
        // future again: a connection that the first poll took would not be free for that look.
        if poll!(ended.as_mut()).is_ready() {
            return;
        }
        tokio::task::yield_now().await;
        // A holder notifies only if a mark says that a request waits. Each look sets the mark again.
        let _ = self.0.statements.await_end.query().bind(digest).execute(self.0.pools.own()).await;
        ended.await;
    }

    fn transactions(&self) -> Option<Transactions> {
        Some(Transactions::of::<Postgres, _>(Arc::new(self.clone())))
    }
}
