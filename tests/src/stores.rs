//! The stores that take a server or a file, each in a place of its own.

use idempotent_runtime::store::{PostgresStore, RedisStore, SqliteStore, Token};
use sqlx::PgPool;
use tempfile::TempDir;

use crate::postgres::PostgresServer;
use crate::redis::{RedisCluster, RedisServer};

/// One in a new file, which goes with its folder.
///
/// # Panics
///
/// When the file cannot be made.
pub async fn sqlite() -> (SqliteStore, TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = SqliteStore::open(folder.path().join("idempotency.db")).await.expect("the store opens");
    (store, folder)
}

/// One in a new database of the shared server, with a pool of at most `connections`.
///
/// # Panics
///
/// When the server does not answer.
pub async fn postgres(connections: u32) -> PostgresStore {
    migrated(&PostgresServer::shared().await.database().await.pool(connections).await).await
}

/// One on this pool, with its tables.
///
/// # Panics
///
/// When the tables cannot be made.
pub async fn migrated(pool: &PgPool) -> PostgresStore {
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("the tables are made");
    store
}

/// Names of a test's own in a server that all share.
pub fn prefix() -> String {
    format!("{:x}:", Token::unique().as_u128())
}

/// One under a [`prefix`] of its own in the shared server.
///
/// # Panics
///
/// When the server does not answer.
pub async fn redis() -> RedisStore {
    let store = RedisStore::builder(&RedisServer::shared().await.url()).prefix(prefix()).open().await;
    store.expect("the store opens")
}

/// One under a [`prefix`] of its own in the shared Cluster.
///
/// # Panics
///
/// When a server does not answer.
pub async fn redis_cluster() -> RedisStore {
    let store = RedisStore::cluster(RedisCluster::shared().await.urls()).prefix(prefix()).open().await;
    store.expect("the store opens")
}
