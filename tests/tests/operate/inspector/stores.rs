//! Each test on each store, in a place of its own.

use idempotent_runtime::store::{PostgresStore, RedisStore, SqliteStore, Token};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::{RedisCluster, RedisServer};

/// Runs `async fn $rule(store: impl Store + Clone)` on each of them.
macro_rules! on_every_store {
    ($($rule:ident),+ $(,)?) => { $(
        mod $rule {
            use crate::inspector::stores;

            #[tokio::test]
            async fn memory() {
                super::$rule(idempotent_runtime::store::MemoryStore::new()).await;
            }

            #[tokio::test]
            async fn sqlite() {
                let (store, _folder) = stores::sqlite().await;
                super::$rule(store).await;
            }

            #[tokio::test]
            async fn postgres() {
                super::$rule(stores::postgres().await).await;
            }

            #[tokio::test]
            async fn redis() {
                super::$rule(stores::redis().await).await;
            }

            #[tokio::test]
            async fn redis_cluster() {
                super::$rule(stores::redis_cluster().await).await;
            }
        }
    )+ };
}
pub(crate) use on_every_store;

pub(crate) async fn sqlite() -> (SqliteStore, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = SqliteStore::open(folder.path().join("idempotency.db")).await.expect("the store opens");
    (store, folder)
}

pub(crate) async fn postgres() -> PostgresStore {
    let store = PostgresStore::new(PostgresServer::shared().await.database().await.pool(10).await);
    store.migrate().await.expect("the tables are made");
    store
}

/// The server is everybody's.
fn prefix() -> String {
    format!("{:x}:", Token::unique().as_u128())
}

pub(crate) async fn redis() -> RedisStore {
    let builder = RedisStore::builder(&RedisServer::shared().await.url()).prefix(prefix());
    builder.open().await.expect("the store opens")
}

pub(crate) async fn redis_cluster() -> RedisStore {
    let builder = RedisStore::cluster(RedisCluster::shared().await.urls()).prefix(prefix());
    builder.open().await.expect("the store opens")
}
