//! A response that its store never takes, however often it is asked.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::RedisStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Runs, Server};

const MEGABYTE: usize = 1024 * 1024;

#[idempotent(scope = "large-reports")]
async fn create_report(State(runs): State<Runs>) -> String {
    runs.run().await;
    "x".repeat(2 * MEGABYTE)
}

#[idempotent(scope = "large-reports-again", oversize = "rerun")]
async fn create_report_again(State(runs): State<Runs>) -> String {
    runs.run().await;
    "x".repeat(2 * MEGABYTE)
}

async fn serve(url: &str, runs: &Runs) -> (Server, Registry) {
    let store = RedisStore::builder(url).open().await.expect("the store opens");
    let registry = Registry::new(store);
    let app = Router::new().route("/reports", post(create_report)).route("/again", post(create_report_again));
    (Server::start(app.with_state(runs.clone()).layer(registry.layer())).await, registry)
}

#[tokio::test]
async fn record_too_large_for_redis_is_told_and_not_retried() {
    let redis = RedisServer::start(&["--proto-max-bulk-len 1mb"]).await;
    let () = redis.command("ACL SETUSER app reset on >secret ~* &* +@all -config").await;
    for (number, url) in [redis.url(), redis.url().replace("redis://", "redis://app:secret@")].iter().enumerate() {
        let runs = Runs::free();
        let (server, registry) = serve(url, &runs).await;
        let key = format!("k{number}");
        let first = server.post_with_key("/reports", &key).await;
        assert_eq!((first.status, first.text().len()), (StatusCode::OK, 2 * MEGABYTE));
        let retry = server.post_with_key("/reports", &key).await;
        assert_eq!(retry.rejection(), "response_not_recorded", "{url}");
        assert_eq!(registry.drain(Duration::ZERO).await, 0, "nothing tries to record it any more");
        assert_eq!(runs.started(), 1);
    }
}

#[tokio::test]
async fn record_too_large_for_redis_runs_again_if_the_policy_says_so() {
    let redis = RedisServer::start(&["--proto-max-bulk-len 1mb"]).await;
    let runs = Runs::free();
    let (server, _) = serve(&redis.url(), &runs).await;
    for number in 1..=2 {
        assert_eq!(server.post_with_key("/again", "k").await.status, StatusCode::OK);
        assert_eq!(runs.started(), number);
    }
}
