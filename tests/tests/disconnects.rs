//! A request whose client left is executed and recorded all the same.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{PATIENCE, Runs, Server, answer, eventually};
use tower_http::timeout::TimeoutLayer;

#[idempotent(scope = "charges")]
async fn create_charge(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "waits", in_flight = wait("20s"))]
async fn waits(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

fn router(runs: &Runs, registry: &Registry) -> Router {
    Router::new()
        .route("/charges", post(create_charge))
        .route("/waits", post(waits))
        .with_state(runs.clone())
        .layer(registry.layer())
}

fn request(path: &str, key: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nidempotency-key: {key}\r\ncontent-length: 0\r\n\r\n")
        .into_bytes()
}

#[tokio::test]
async fn twenty_clients_that_hang_up_get_twenty_executions_and_twenty_replays() {
    let runs = Runs::held();
    let server = Server::start(router(&runs, &Registry::new(MemoryStore::new()))).await;
    let mut connections = Vec::new();
    for number in 0..20 {
        connections.push(server.connect_and_send(&request("/charges", &format!("k{number}"))).await);
    }
    runs.until_started(20).await;
    drop(connections);
    // Requests on new connections show that the server has seen the others close.
    for number in 0..20 {
        let duplicate = server.post_with_key("/charges", &format!("k{number}")).await;
        assert_eq!(duplicate.refusal(), "in_flight");
    }
    runs.let_finish(20);
    runs.until_finished(20).await;
    for number in 0..20 {
        let retry = eventually(
            async || server.post_with_key("/charges", &format!("k{number}")).await,
            |answer| answer.status == StatusCode::CREATED,
        )
        .await;
        assert!(retry.is_replay());
    }
    assert_eq!(runs.started(), 20);
}

#[tokio::test]
async fn a_timeout_layer_does_not_stop_the_handler() {
    let runs = Runs::held();
    let registry = Registry::new(MemoryStore::new());
    let app = router(&runs, &registry)
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(20)));
    let server = Server::start(app).await;
    assert_eq!(server.post_with_key("/charges", "k").await.status, StatusCode::GATEWAY_TIMEOUT);
    runs.let_finish(1);
    runs.until_finished(1).await;
    assert_eq!(registry.drain(PATIENCE).await, 0);
    let retry = server.post_with_key("/charges", "k").await;
    assert_eq!((retry.status, retry.text(), retry.is_replay()), (StatusCode::CREATED, "charge 1", true));
}

#[tokio::test]
async fn an_unguarded_request_ends_with_its_client_as_any_handler_does() {
    let runs = Runs::held();
    let server = Server::start(router(&runs, &Registry::new(MemoryStore::new()))).await;
    let connection =
        server.connect_and_send(b"POST /charges HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n").await;
    runs.until_started(1).await;
    drop(connection);
    // The dropped handler no longer waits in line, so the only permit goes to the second one.
    let second = tokio::spawn(answer(server.post("/charges")));
    runs.until_started(2).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    runs.let_finish(1);
    assert_eq!(second.await.expect("the request runs").text(), "charge 2");
    assert_eq!(runs.finished(), 1);
}

#[tokio::test]
async fn a_drain_waits_for_handlers_that_outlived_their_client() {
    let runs = Runs::held();
    let registry = Registry::new(MemoryStore::new());
    let server = Server::start(router(&runs, &registry)).await;
    drop(server.connect_and_send(&request("/charges", "k")).await);
    runs.until_started(1).await;
    assert_eq!(registry.drain(Duration::from_millis(50)).await, 1, "one still runs");
    let draining = tokio::spawn({
        let registry = registry.clone();
        async move { registry.drain(PATIENCE).await }
    });
    runs.let_finish(1);
    assert_eq!(draining.await.expect("the drain ends"), 0);
    assert_eq!(runs.finished(), 1);
    assert!(server.post_with_key("/charges", "k").await.is_replay());
}

#[tokio::test]
async fn a_waiter_that_hangs_up_leaves_the_claim_as_it_is() {
    let runs = Runs::held();
    let server = Server::start(router(&runs, &Registry::new(MemoryStore::new()))).await;
    let first = tokio::spawn(answer(server.post("/waits").header("idempotency-key", "k")));
    runs.until_started(1).await;
    for _ in 0..5 {
        drop(server.connect_and_send(&request("/waits", "k")).await);
    }
    runs.let_finish(1);
    assert_eq!(first.await.expect("the request runs").text(), "charge 1");
    let retries = join_all((0..5).map(|_| server.post_with_key("/waits", "k"))).await;
    assert!(retries.iter().all(|retry| retry.is_replay() && retry.text() == "charge 1"));
    assert_eq!(runs.started(), 1);
}
