//! Leases, attempts, panics, and the state that a dead process leaves in the store.

use std::panic::panic_any;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::routing::post;
use axum::{Extension, Router};
use idempotent_runtime::store::{MemoryStore, Store, StoreAdmin};
use idempotent_runtime::{Idempotency, RecordKey, Registry, idempotent};
use idempotent_tests::{Runs, Server, answer, eventually, leave_a_claim};
use tower_http::catch_panic::CatchPanicLayer;

#[idempotent(scope = "reruns", fingerprint = none)]
async fn reruns(State(runs): State<Runs>, idempotency: Idempotency) -> (StatusCode, String) {
    runs.run().await;
    (StatusCode::CREATED, format!("attempt {}", idempotency.attempt()))
}

#[idempotent(scope = "rejects", fingerprint = none, after_crash = "reject")]
async fn rejects(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "waits", fingerprint = none, in_flight = wait("20s"))]
async fn waits(State(runs): State<Runs>, idempotency: Idempotency) -> (StatusCode, String) {
    runs.run().await;
    (StatusCode::CREATED, format!("attempt {}", idempotency.attempt()))
}

#[idempotent(scope = "fails-second", fingerprint = none)]
async fn fails_in_its_second_attempt(idempotency: Idempotency) -> (StatusCode, String) {
    let status = if idempotency.attempt() == 2 { StatusCode::BAD_GATEWAY } else { StatusCode::CREATED };
    (status, format!("attempt {}", idempotency.attempt()))
}

#[idempotent(scope = "panics-second", fingerprint = none)]
async fn panics_in_its_second_attempt(idempotency: Idempotency) -> (StatusCode, String) {
    assert_ne!(idempotency.attempt(), 2, "a bug that shows after a crash");
    (StatusCode::CREATED, format!("attempt {}", idempotency.attempt()))
}

/// Three leases pass while a handler runs: one is not enough to see that the lease is renewed.
const LEASE: Duration = Duration::from_millis(500);

#[idempotent(scope = "short-lease", lease = "500ms")]
async fn with_short_lease(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "blocks", lease = "500ms")]
async fn blocks_its_thread(State(runs): State<Runs>, Extension(gate): Extension<Arc<Barrier>>) -> (StatusCode, String) {
    // This comes first, before any `await`: the thread is blocked from the moment at which the handler begins.
    gate.wait();
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "crash-panics")]
async fn panics(State(runs): State<Runs>) {
    let run = runs.run().await;
    if run == 1 {
        panic_any(format!("run {run} panics"));
    }
}

#[idempotent(scope = "panics-once", after_crash = "reject")]
async fn panics_and_must_not_rerun(State(runs): State<Runs>) {
    runs.run().await;
    panic!("the card was charged and then this happened");
}

#[idempotent(scope = "panics-in-its-body")]
async fn panics_in_its_body(State(runs): State<Runs>) -> ([(HeaderName, usize); 1], axum::body::Body) {
    let run = runs.run().await;
    let body = axum::body::Body::from_stream(futures_util::stream::once(async move {
        assert!(run > 1, "the body of run {run} panics");
        Ok::<_, std::io::Error>(format!("run {run}"))
    }));
    // With a length, because a body of unknown length would be sent while it is recorded.
    ([(header::CONTENT_LENGTH, "run 1".len())], body)
}

async fn serve(runs: &Runs, store: &MemoryStore) -> Server {
    let app = Router::new()
        .route("/reruns", post(reruns))
        .route("/rejects", post(rejects))
        .route("/waits", post(waits))
        .route("/fails-second", post(fails_in_its_second_attempt))
        .route("/panics-second", post(panics_in_its_second_attempt))
        .route("/short-lease", post(with_short_lease))
        .route("/panics", post(panics))
        .route("/panics-in-its-body", post(panics_in_its_body))
        .route("/panics-once", post(panics_and_must_not_rerun))
        .with_state(runs.clone())
        .layer(Registry::new(store.clone()).layer())
        .layer(CatchPanicLayer::new());
    Server::start(app).await
}

#[tokio::test]
async fn rerun_after_a_crash_is_the_next_attempt() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let server = serve(&runs, &store).await;
    let (key, token) = leave_a_claim(&store, "reruns", Duration::from_secs(30)).await;
    assert_eq!(server.post_with_key("/reruns", "k").await.rejection(), "in_flight");
    let _ = store.renew(&key, token, Duration::ZERO).await;
    assert_eq!(server.post_with_key("/reruns", "k").await.text(), "attempt 2");
    assert!(server.post_with_key("/reruns", "k").await.is_replay());
}

/// The first attempt may have charged the card. A handler that asks the card network only after the first attempt must
/// never be told again that this is the first.
#[tokio::test]
async fn attempt_failed_after_a_crash_still_counts() {
    for (path, scope, status) in [
        ("/fails-second", "fails-second", StatusCode::BAD_GATEWAY),
        ("/panics-second", "panics-second", StatusCode::INTERNAL_SERVER_ERROR),
    ] {
        let (runs, store) = (Runs::free(), MemoryStore::new());
        let server = serve(&runs, &store).await;
        leave_a_claim(&store, scope, Duration::ZERO).await;
        assert_eq!(server.post_with_key(path, "k").await.status, status);
        assert_eq!(server.post_with_key(path, "k").await.text(), "attempt 3", "{path}");
        assert!(server.post_with_key(path, "k").await.is_replay());
    }
}

#[tokio::test]
async fn after_a_crash_reject_answers_409_until_the_entry_is_purged() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let server = serve(&runs, &store).await;
    let (key, _) = leave_a_claim(&store, "rejects", Duration::ZERO).await;
    for _ in 0..3 {
        let answer = server.post_with_key("/rejects", "k").await;
        assert_eq!((answer.status, answer.rejection().as_str()), (StatusCode::CONFLICT, "outcome_unknown"));
        assert!(!answer.headers.contains_key("retry-after"), "asking again does not help");
    }
    assert_eq!(runs.started(), 0);
    assert!(store.purge(&key).await.expect("the store answers"));
    assert_eq!(server.post_with_key("/rejects", "k").await.text(), "charge 1");
}

#[tokio::test]
async fn another_authorization_does_not_take_a_dead_claim_over() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let server = serve(&runs, &store).await;
    for (path, scope) in [("/reruns", "reruns"), ("/rejects", "rejects")] {
        leave_a_claim(&store, scope, Duration::ZERO).await;
        let other = server.post(path).header("idempotency-key", "k").header("authorization", "Bearer mallory");
        assert_eq!(answer(other).await.rejection(), "other_credentials", "422 beats 409");
    }
    assert_eq!(runs.started(), 0);
}

#[tokio::test]
async fn a_waiter_of_a_dead_process_is_told_and_its_retry_executes() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let server = serve(&runs, &store).await;
    leave_a_claim(&store, "waits", Duration::from_millis(300)).await;
    assert_eq!((server.post_with_key("/waits", "k").await.rejection().as_str(), runs.started()), ("not_recorded", 0));
    assert_eq!(server.post_with_key("/waits", "k").await.text(), "attempt 2");
}

/// Checks that duplicates are rejected for the length of three leases, so the claim is renewed.
async fn assert_stays_in_flight(server: &Server, path: &str) {
    let begun = std::time::Instant::now();
    eventually(
        async || {
            assert_eq!(server.post_with_key(path, "k").await.rejection(), "in_flight");
            begun.elapsed()
        },
        |&elapsed| elapsed > 3 * LEASE,
    )
    .await;
}

#[tokio::test]
async fn a_lease_is_renewed_while_the_handler_runs_however_long() {
    let (runs, store) = (Runs::held(), MemoryStore::new());
    let server = serve(&runs, &store).await;
    let first = tokio::spawn(answer(server.post("/short-lease").header("idempotency-key", "k")));
    runs.until_started(1).await;
    assert_stays_in_flight(&server, "/short-lease").await;
    runs.let_finish(1);
    assert_eq!(first.await.expect("the request runs").text(), "charge 1");
    assert_eq!(runs.started(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_its_thread_keeps_its_claim() {
    let (runs, store, gate) = (Runs::free(), MemoryStore::new(), Arc::new(Barrier::new(2)));
    let app = Router::new()
        .route("/blocks", post(blocks_its_thread))
        .with_state(runs.clone())
        .layer(Extension(Arc::clone(&gate)))
        .layer(Registry::new(store.clone()).layer());
    let server = Server::start(app).await;
    let first = tokio::spawn(answer(server.post("/blocks").header("idempotency-key", "k")));
    let key = RecordKey::new("blocks", None, "k");
    eventually(async || store.get(&key).await.expect("the store answers"), Option::is_some).await;
    assert_stays_in_flight(&server, "/blocks").await;
    gate.wait();
    assert_eq!(first.await.expect("the request runs").text(), "charge 1");
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn a_panic_reaches_the_catch_panic_layer_and_frees_the_key() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let server = serve(&runs, &store).await;
    assert_eq!(server.post_with_key("/panics", "k").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(store.is_empty(), "released");
    assert_eq!(server.post_with_key("/panics", "k").await.status, StatusCode::OK);
    assert_eq!(runs.started(), 2);
}

#[tokio::test]
async fn a_panic_while_the_body_is_collected_frees_the_key() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let server = serve(&runs, &store).await;
    assert_eq!(server.post_with_key("/panics-in-its-body", "k").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(server.post_with_key("/panics-in-its-body", "k").await.text(), "run 2");
    assert!(server.post_with_key("/panics-in-its-body", "k").await.is_replay());
}

#[tokio::test]
async fn a_panic_under_reject_leaves_the_outcome_unknown_at_once() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let server = serve(&runs, &store).await;
    assert_eq!(server.post_with_key("/panics-once", "k").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(server.post_with_key("/panics-once", "k").await.rejection(), "outcome_unknown");
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn a_panic_after_the_client_left_settles_the_claim_too() {
    let (runs, store) = (Runs::held(), MemoryStore::new());
    let server = serve(&runs, &store).await;
    let request = b"POST /panics HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n";
    drop(server.connect_and_send(request).await);
    runs.until_started(1).await;
    runs.let_finish(2);
    let retry =
        eventually(async || server.post_with_key("/panics", "k").await.status, |&status| status == StatusCode::OK);
    retry.await;
    assert_eq!(runs.started(), 2);
}
