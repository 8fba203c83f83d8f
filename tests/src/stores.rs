//! Stores that need a server or a file. Each call returns a store that shares no data with the others.

use std::time::{Duration, UNIX_EPOCH};

use http::StatusCode;
use idempotent_runtime::store::{AfterCrash, ClaimRequest, PostgresStore, RedisStore, SqliteStore, Token};
use idempotent_runtime::{Fingerprint, Record, RecordedBody};
use sqlx::{AssertSqlSafe, PgPool};
use tempfile::TempDir;

use crate::postgres::{Database, PostgresServer};
use crate::redis::{RedisCluster, RedisServer};

/// A SQLite store in a new file, which is deleted with its folder.
///
/// # Panics
///
/// When the file cannot be made.
pub async fn sqlite() -> (SqliteStore, TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = SqliteStore::open(folder.path().join("idempotency.db")).await.expect("the store opens");
    (store, folder)
}

/// A PostgreSQL store in a new database of the shared server, with a pool of at most `connections`.
///
/// # Panics
///
/// When the server does not answer.
pub async fn postgres(connections: u32) -> PostgresStore {
    migrated(&PostgresServer::shared().await.database().await.pool(connections).await).await
}

/// A PostgreSQL store on this pool. Creates its tables.
///
/// # Panics
///
/// When the tables cannot be made.
pub async fn migrated(pool: &PgPool) -> PostgresStore {
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("the tables are made");
    store
}

/// A PostgreSQL store in a new database of the shared server, together with the application's tables.
///
/// # Panics
///
/// When the server does not answer, or the schema is not valid SQL.
pub async fn postgres_beside(schema: &str, connections: u32) -> (PostgresStore, PgPool, Database) {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool(connections).await;
    let store = migrated(&pool).await;
    sqlx::raw_sql(AssertSqlSafe(schema.to_owned())).execute(&pool).await.expect("the tables are made");
    (store, pool, database)
}

/// A claim for one minute with a unique token, which may run again after a crash.
pub fn claim_request() -> ClaimRequest {
    ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([1; 32]))
        .with_lease(Duration::from_mins(1))
        .with_ttl(Duration::from_mins(2))
        .with_after_crash(AfterCrash::Rerun)
}

/// A record for a [`claim_request`].
pub fn record(body: impl Into<Vec<u8>>) -> Record {
    let body = RecordedBody::Whole(body.into().into());
    Record::new(StatusCode::CREATED, Vec::new(), body, claim_request().fingerprint, UNIX_EPOCH)
}

/// A new prefix for the names of one test in a shared server.
pub fn prefix() -> String {
    format!("{:x}:", Token::unique().as_u128())
}

/// A Redis store under a new [`prefix`] in the shared server.
///
/// # Panics
///
/// When the server does not answer.
pub async fn redis() -> RedisStore {
    let store = RedisStore::builder(&RedisServer::shared().await.url()).prefix(prefix()).open().await;
    store.expect("the store opens")
}

/// A Redis store under a new [`prefix`] in the shared Cluster.
///
/// # Panics
///
/// When a server does not answer.
pub async fn redis_cluster() -> RedisStore {
    let store = RedisStore::cluster(RedisCluster::shared().await.urls()).prefix(prefix()).open().await;
    store.expect("the store opens")
}
