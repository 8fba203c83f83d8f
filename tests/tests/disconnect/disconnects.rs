//! A request is executed and recorded although its client has disconnected.

use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Idempotency, Registry, idempotent};
use idempotent_tests::{Fault, FaultyStore, Logs, PATIENCE, Runs, Server, answer, eventually};
use tower::ServiceExt;
use tower_http::timeout::TimeoutLayer;

#[idempotent(scope = "disconnected-charges")]
async fn create_charge(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "disconnected-waits", fingerprint = none, in_flight = wait("20s"))]
async fn waits(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "waits-for-failure", in_flight = wait("20s"))]
async fn waits_for_failure(State(runs): State<Runs>) -> StatusCode {
    runs.run().await;
    StatusCode::INTERNAL_SERVER_ERROR
}

/// Forwards the request, like a gateway in front of other handlers.
#[idempotent(scope = "forwards")]
async fn forwards(State(runs): State<Runs>, idempotency: Idempotency, request: Request) -> (StatusCode, String) {
    let inner = Router::new().route("/forwards", post(waits)).with_state(runs);
    let response = inner.oneshot(request).await.expect("a router answers");
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("the body arrives");
    let (key, body) = (idempotency.key().unwrap_or_default(), String::from_utf8_lossy(&body));
    (StatusCode::CREATED, format!("{key}: {body}"))
}

fn router(runs: &Runs, registry: &Registry) -> Router {
    Router::new()
        .route("/charges", post(create_charge))
        .route("/waits", post(waits))
        .route("/waits-for-failure", post(waits_for_failure))
        .route("/forwards", post(forwards))
        .with_state(runs.clone())
        .layer(registry.layer())
}

fn request(path: &str, key: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: {key}\r\ncontent-length: 0\r\n\r\n")
        .into_bytes()
}

#[tokio::test]
async fn twenty_clients_that_hang_up_execute_and_replay_twenty() {
    let runs = Runs::held();
    let server = Server::start(router(&runs, &Registry::new(MemoryStore::new()))).await;
    let mut connections = Vec::new();
    for number in 0..20 {
        connections.push(server.connect_and_send(&request("/charges", &format!("k{number}"))).await);
    }
    runs.until_started(20).await;
    drop(connections);
    // Requests on new connections show that the server has seen the other connections close.
    for number in 0..20 {
        let duplicate = server.post_with_key("/charges", &format!("k{number}")).await;
        assert_eq!(duplicate.rejection(), "in_flight");
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
async fn unguarded_request_ends_with_its_client() {
    let runs = Runs::held();
    let server = Server::start(router(&runs, &Registry::new(MemoryStore::new()))).await;
    let connection =
        server.connect_and_send(b"POST /charges HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\n\r\n").await;
    runs.until_started(1).await;
    drop(connection);
    runs.until_abandoned(1).await;
    assert_eq!(runs.finished(), 0);
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

/// The handler for which the request waits runs in another process.
#[tokio::test]
async fn drain_counts_no_waiter_as_a_handler() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let elsewhere = Server::start(router(&runs, &Registry::new(store.clone()))).await;
    let registry = Registry::new(store.clone());
    let server = Server::start(router(&runs, &registry)).await;
    let first = tokio::spawn(answer(elsewhere.post("/waits").header("idempotency-key", "k")));
    runs.until_started(1).await;
    let waiter = tokio::spawn(answer(server.post("/waits").header("idempotency-key", "k")));
    eventually(async || store.looks(), |&looks| looks > 0).await;
    assert_eq!(registry.drain(Duration::ZERO).await, 0);
    runs.let_finish(1);
    assert_eq!(first.await.expect("the request runs").text(), "charge 1");
    assert!(waiter.await.expect("the request waits").is_replay());
}

#[tokio::test]
async fn request_dropped_outside_of_a_runtime_runs_to_its_end() {
    let (runs, registry) = (Runs::held(), Registry::new(MemoryStore::new()));
    let app = router(&runs, &registry);
    let request = || Request::post("/charges").header("idempotency-key", "k").body(axum::body::Body::empty());
    let mut serving = Box::pin(app.clone().oneshot(request().expect("it is a request")));
    tokio::select! {
        _ = &mut serving => unreachable!("the handler is held"),
        () = runs.until_started(1) => {}
    }
    std::thread::spawn(move || drop(serving)).join().expect("nothing panics");
    runs.let_finish(1);
    assert_eq!(registry.drain(PATIENCE).await, 0);
    let retry = app.oneshot(request().expect("it is a request")).await.expect("a router answers");
    assert!(retry.headers().contains_key("idempotent-replayed"));
    assert_eq!((runs.started(), runs.finished()), (1, 1));
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

/// The log line for a request that continues after its client has disconnected.
const GOES_ON: &str = "the client disconnected: the handler continues";

#[tokio::test]
async fn waiter_that_hangs_up_in_the_store_call_never_runs() {
    let (runs, store, logs) = (Runs::held(), FaultyStore::new(), Logs::collect());
    let registry = Registry::builder(store.clone()).store_timeout(PATIENCE).build();
    let server = Server::start(router(&runs, &registry)).await;
    let first = tokio::spawn(answer(server.post("/waits-for-failure").header("idempotency-key", "k")));
    runs.until_started(1).await;
    store.on_claim(Fault::AnswerIsLate);
    let waiter = server.connect_and_send(&request("/waits-for-failure", "k")).await;
    eventually(async || store.claims(), |&claims| claims == 2).await;
    drop(waiter);
    eventually(async || logs.text(), |text| text.contains(GOES_ON)).await;
    store.let_through();
    runs.let_finish(2);
    assert_eq!(first.await.expect("the request runs").status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(registry.drain(PATIENCE).await, 0);
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn handler_forwarding_to_a_guarded_one_survives_its_client() {
    let (runs, store, logs) = (Runs::held(), FaultyStore::new(), Logs::collect());
    let registry = Registry::new(store.clone());
    let server = Server::start(router(&runs, &registry)).await;
    let direct = tokio::spawn(answer(server.post("/waits").header("idempotency-key", "k")));
    runs.until_started(1).await;
    let forwarded = server.connect_and_send(&request("/forwards", "k")).await;
    // A look by the inner guard shows that it waits. A request that only waits ends with its client.
    eventually(async || store.looks(), |&looks| looks >= 1).await;
    drop(forwarded);
    eventually(async || logs.text(), |text| text.contains(GOES_ON)).await;
    runs.let_finish(1);
    assert_eq!(direct.await.expect("the request runs").text(), "charge 1");
    assert_eq!(registry.drain(PATIENCE).await, 0);
    let retry = server.post_with_key("/forwards", "k").await;
    assert_eq!((retry.text(), retry.is_replay()), ("k: charge 1", true));
    assert_eq!(runs.started(), 1);
}
