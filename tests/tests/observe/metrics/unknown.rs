//! Unknown outcomes are counted in the stores: they are still counted after a restart, until an operator ends them.

use axum::Router;
use axum::routing::post;
use idempotent_runtime::metrics::{self, UNKNOWN_OUTCOMES};
use idempotent_runtime::store::{MemoryStore, PostgresStore, RedisStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{RecordKey, Registry, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Server, eventually};
use tower_http::catch_panic::CatchPanicLayer;

use crate::exposition::Exposition;

/// A handler that is cut off, in its own scope, so that the tests do not share gauges.
macro_rules! cut_off {
    ($name:ident, $scope:literal) => {
        #[idempotent(scope = $scope, ttl = "1s", after_crash = "reject")]
        async fn $name() {
            panic!("cut off");
        }
    };
}

cut_off!(over_memory, "unknown-memory");
cut_off!(over_sqlite, "unknown-sqlite");
cut_off!(over_postgres, "unknown-postgres");
cut_off!(over_redis, "unknown-redis");

async fn until_shown(scope: &str, count: f64) {
    let ask = async || {
        metrics::refresh();
        Exposition::scrape().value(UNKNOWN_OUTCOMES, &[("scope", scope)])
    };
    eventually(ask, |shown| *shown == Some(count)).await;
}

async fn is_counted_until_it_is_purged<S: StoreAdmin + Clone>(
    scope: &str,
    store: S,
    app: Router,
    reopened: impl AsyncFn() -> S,
) {
    Exposition::begin();
    let registry = Registry::new(store);
    let server = Server::start(app.layer(registry.layer()).layer(CatchPanicLayer::new())).await;
    for key in ["k1", "k2"] {
        server.post_with_key("/", key).await;
        assert_eq!(server.post_with_key("/", key).await.rejection(), "outcome_unknown");
    }
    until_shown(scope, 2.0).await;
    // This process ends. The next one, which begins below, gets no requests.
    drop((server, registry));
    until_shown(scope, 0.0).await;
    let store = reopened().await;
    let registry = Registry::new(store.clone());
    until_shown(scope, 2.0).await;
    assert!(store.purge(&RecordKey::new(scope, None, "k1")).await.expect("the store answers"));
    until_shown(scope, 1.0).await;
    assert!(store.purge(&RecordKey::new(scope, None, "k2")).await.expect("the store answers"));
    until_shown(scope, 0.0).await;
    drop(registry);
}

#[tokio::test]
async fn unknown_outcomes_in_memory_are_counted_until_purged() {
    let store = MemoryStore::new();
    let app = Router::new().route("/", post(over_memory));
    is_counted_until_it_is_purged("unknown-memory", store.clone(), app, async || store.clone()).await;
}

#[tokio::test]
async fn unknown_outcomes_in_sqlite_are_counted_after_a_restart() {
    let file = SqliteFile::new();
    let open = async || SqliteStore::open(file.path()).await.expect("the file can be opened");
    let app = Router::new().route("/", post(over_sqlite));
    is_counted_until_it_is_purged("unknown-sqlite", open().await, app, open).await;
}

#[tokio::test]
async fn unknown_outcomes_in_postgres_are_counted_after_a_restart() {
    let database = PostgresServer::shared().await.database().await;
    let open = async || PostgresStore::new(database.pool(2).await);
    open().await.migrate().await.expect("the tables are made");
    let app = Router::new().route("/", post(over_postgres));
    is_counted_until_it_is_purged("unknown-postgres", open().await, app, open).await;
}

#[tokio::test]
async fn unknown_outcomes_in_redis_are_counted_after_a_restart() {
    let redis = RedisServer::start(&[]).await;
    let open = async || RedisStore::connect(&redis.url()).await.expect("the server answers");
    let app = Router::new().route("/", post(over_redis));
    is_counted_until_it_is_purged("unknown-redis", open().await, app, open).await;
}
