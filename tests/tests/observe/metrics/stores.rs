//! The calls of the stores are timed, and those that fail are counted.

use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::metrics::{STORE_DURATION_SECONDS, STORE_ERRORS_TOTAL};
use idempotent_runtime::store::{MemoryStore, RedisStore, SqliteStore};
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::Server;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::sqlite::SqliteFile;

use crate::exposition::Exposition;

#[idempotent(scope = "store-stopped", store = "stopped-redis")]
async fn over_redis() {}

#[idempotent(scope = "store-memory", store = "measured-memory")]
async fn over_memory() {}

#[idempotent(scope = "store-released", store = "measured-memory")]
async fn released_in_memory() -> StatusCode {
    StatusCode::BAD_GATEWAY
}

#[idempotent(scope = "store-transaction", store = "measured-sqlite")]
async fn in_transaction(mut tx: Tx<sqlx::Sqlite>) -> StatusCode {
    let failed = sqlx::query("INSERT INTO nowhere VALUES (1)").execute(&mut *tx).await.is_err();
    if failed { StatusCode::BAD_GATEWAY } else { StatusCode::OK }
}

/// The numbers of calls that were timed and that failed.
fn calls(store: &str, op: &str) -> (f64, f64) {
    let (exposition, labels) = (Exposition::scrape(), [("store", store), ("op", op)]);
    let timed = exposition.value(&format!("{STORE_DURATION_SECONDS}_count"), &labels).unwrap_or(0.0);
    (timed, exposition.value(STORE_ERRORS_TOTAL, &labels).unwrap_or(0.0))
}

#[tokio::test]
async fn calls_of_a_stopped_redis_are_errors_of_the_longest_time() {
    Exposition::begin();
    let redis = RedisServer::start(&[]).await;
    let store = RedisStore::connect(&redis.url()).await.expect("the server answers");
    let registry = Registry::builder(MemoryStore::new())
        .store("stopped-redis", store)
        .store_timeout(Duration::from_millis(300))
        .build();
    let server = Server::start(Router::new().route("/", post(over_redis)).layer(registry.layer())).await;
    assert_eq!(server.post_with_key("/", "before").await.status, StatusCode::OK);
    assert_eq!((calls("stopped-redis", "claim"), calls("stopped-redis", "complete")), ((1.0, 0.0), (1.0, 0.0)));
    redis.signal("STOP");
    assert_eq!(server.post_with_key("/", "meanwhile").await.rejection(), "store_unavailable");
    redis.signal("CONT");
    assert_eq!(calls("stopped-redis", "claim"), (2.0, 1.0));
    let labels = [("store", "stopped-redis"), ("op", "claim")];
    let took = Exposition::scrape().value(&format!("{STORE_DURATION_SECONDS}_sum"), &labels);
    assert!(took.is_some_and(|seconds| seconds >= 0.3), "a call that was cut off is timed as well: {took:?}");
}

#[tokio::test]
async fn calls_of_a_store_that_answers_at_once_are_timed_too() {
    Exposition::begin();
    let registry = Registry::builder(MemoryStore::new()).store("measured-memory", MemoryStore::new()).build();
    let app = Router::new().route("/", post(over_memory)).route("/released", post(released_in_memory));
    let server = Server::start(app.layer(registry.layer())).await;
    server.post_with_key("/", "k").await;
    server.post_with_key("/", "k").await;
    server.post_with_key("/released", "k").await;
    let counted = ["claim", "complete", "release"].map(|op| calls("measured-memory", op));
    assert_eq!(counted, [(3.0, 0.0), (1.0, 0.0), (1.0, 0.0)]);
}

#[tokio::test]
async fn failed_statement_of_a_handler_is_no_error_of_the_store() {
    Exposition::begin();
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.expect("the file can be opened");
    let registry = Registry::builder(MemoryStore::new()).store("measured-sqlite", store).build();
    let server = Server::start(Router::new().route("/", post(in_transaction)).layer(registry.layer())).await;
    assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::BAD_GATEWAY);
    file.execute("CREATE TABLE nowhere (number INTEGER)").await;
    assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::OK);
    let counted = ["claim", "roll_back", "record", "commit"].map(|op| calls("measured-sqlite", op));
    assert_eq!(counted, [(2.0, 0.0), (1.0, 0.0), (1.0, 0.0), (1.0, 0.0)]);
}
