//! Creates a store from the application's pool, with its options.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::store::postgres::advisory_locks::lock;
use crate::store::postgres::batched::InStatement;
use crate::store::postgres::expired_deletion::ExpiredDeletion;
use crate::store::postgres::in_clear;
use crate::store::postgres::inner::Inner;
use crate::store::postgres::listener::Listener;
use crate::store::postgres::pooler::Pooler;
use crate::store::postgres::pools::Pools;
use crate::store::postgres::statements::Statements;
use crate::store::postgres::store::PostgresStore;

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
    /// Sets the schema of the tables; `idempotency` by default. Every name is allowed, because it is quoted.
    ///
    /// # Panics
    ///
    /// If the name is empty, contains a NUL, or is longer than the 63 bytes that PostgreSQL keeps of a name.
    pub fn schema(mut self, name: impl Into<String>) -> Self {
        let name = name.into();
        assert!(
            (1..=63).contains(&name.len()) && !name.contains('\0'),
            "{name:?} is no name of a schema: PostgreSQL takes 1 to 63 bytes without NUL"
        );
        self.schema = name;
        self
    }

    /// Sets the time between two deletions of expired rows; 30 seconds by default.
    pub fn delete_expired_every(mut self, interval: Duration) -> Self {
        self.deletion_interval = interval.max(Duration::from_millis(1));
        self
    }

    /// Declares that the server is behind a pooler that lends a connection for one transaction, such as PgBouncer with
    /// `pool_mode = transaction`.
    ///
    /// Without this call, the store detects the pooler when it first connects: it compares the server's processes behind four
    /// connections. Behind a pooler, no prepared statement has a name, each statement is a transaction of four round trips, and
    /// waiting requests (`in_flight = wait`) poll every 50 milliseconds, because `LISTEN` does not work there.
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

    /// Builds the store. It connects when it is first used.
    pub fn build(self) -> PostgresStore {
        let schema = format!("\"{}\"", self.schema.replace('"', "\"\""));
        let pooler = Arc::new(if self.is_pooled { Pooler::present() } else { Pooler::unknown() });
        let statements = Arc::new(Statements::new(&schema, &pooler));
        let lock = lock(b"delete_expired", &[schema.as_bytes()]);
        let pools = Arc::new(Pools::new(self.pool, pooler));
        let channel = channel(&schema);
        PostgresStore(Arc::new(Inner {
            listener: Listener::new(channel.clone()),
            expired_deletion: ExpiredDeletion::new(Arc::clone(&pools), &statements, lock, self.deletion_interval),
            running: Arc::default(),
            expects_rows: AtomicBool::new(false),
            claims: InStatement::batcher(Arc::clone(&pools), statements.claim_many.clone(), channel.clone()),
            completions: InStatement::batcher(Arc::clone(&pools), statements.complete_many.clone(), channel.clone()),
            releases: InStatement::batcher(Arc::clone(&pools), statements.release_many.clone(), channel),
            pools,
            schema,
            statements,
        }))
    }
}

/// Returns the name of the channel. PostgreSQL keeps 63 bytes of a name, so this is a digest of the schema's name.
fn channel(schema: &str) -> String {
    let digest = lock(b"channel", &[schema.as_bytes()]);
    format!("idempotency_{digest:016x}")
}

impl PostgresStore {
    /// Creates a store in the application's own database.
    ///
    /// The store's own connections are pinged only if they were idle for a second. `before_acquire` of the application's pool
    /// does not apply to them, but `after_connect` does.
    pub fn new(pool: PgPool) -> Self {
        Self::builder(pool).build()
    }

    /// Creates a store with a pool of its own, of ten connections, which [`connect_pool`](Self::connect_pool) makes.
    ///
    /// # Errors
    ///
    /// If the URL is malformed, the server cannot be reached, or the server rejects the connection.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection. Nothing in the database changes.
    pub async fn connect(url: &str) -> Result<Self, sqlx::Error> {
        // The test would cost a round trip for each transaction of a handler. A statement on a broken connection fails anyway.
        Ok(Self::new(Self::connect_pool(url, PgPoolOptions::new().test_before_acquire(false)).await?))
    }

    /// Creates a pool for the application and this store. Its connections send nothing to another machine without encryption, unless
    /// the URL says `sslmode=disable`.
    ///
    /// `sslmode`, `sslrootcert`, `sslcert` and `sslkey` have the same meaning as in libpq, with one difference: `prefer`, the
    /// default, means `require` if the server is neither on this machine nor behind a socket. Only `verify-full` protects from an
    /// attacker in the network. The server's certificate may be signed by `sslrootcert` or by one of the authorities that the
    /// system trusts. An unknown parameter is an error.
    ///
    /// # Errors
    ///
    /// If the URL is malformed, the connection would not be encrypted, the server cannot be reached, or the server rejects the
    /// connection.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection. Nothing in the database changes.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use idempotent_runtime::store::PostgresStore;
    /// use sqlx::postgres::PgPoolOptions;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), sqlx::Error> {
    /// let url = "postgres://app:secret@db.example/shop?sslmode=verify-full&sslrootcert=/etc/ssl/db-ca.pem";
    /// let pool = PostgresStore::connect_pool(url, PgPoolOptions::new().max_connections(20)).await?;
    /// let store = PostgresStore::new(pool.clone());
    /// # drop(store);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect_pool(url: &str, options: PgPoolOptions) -> Result<PgPool, sqlx::Error> {
        in_clear::pool(url, options).await
    }

    /// Returns a builder of a store in the application's own database.
    pub fn builder(pool: PgPool) -> PostgresStoreBuilder {
        PostgresStoreBuilder {
            pool,
            schema: "idempotency".to_owned(),
            deletion_interval: Duration::from_secs(30),
            is_pooled: false,
        }
    }
}
