//! A lease expires while its handler still runs: its process knows better than the store whether the key is in use.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::{EntryState, StoreAdmin};
use idempotent_runtime::{Idempotency, RecordKey, Registry, idempotent};
use idempotent_tests::{Answer, Fault, FaultyStore, Logs, Runs, Server, answer, eventually};
use tokio::task::JoinHandle;

type Charged = (StatusCode, String);

#[idempotent(scope = "lapsed-waits", lease = "200ms", in_flight = wait("20s"))]
async fn waits(State(runs): State<Runs>, body: String) -> Charged {
    (StatusCode::CREATED, format!("{body} {}", runs.run().await))
}

#[idempotent(scope = "fails-first", lease = "200ms", in_flight = wait("20s"))]
async fn fails_first(State(runs): State<Runs>, idempotency: Idempotency) -> Charged {
    let status = if runs.run().await == 1 { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::CREATED };
    (status, idempotency.attempt().to_string())
}

#[idempotent(scope = "at-most-once", lease = "200ms", after_crash = "reject")]
async fn at_most_once(State(runs): State<Runs>, body: String) -> Charged {
    (StatusCode::CREATED, format!("{body} {}", runs.run().await))
}

/// Starts one process.
async fn serve(runs: &Runs, store: &FaultyStore) -> Server {
    let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(100)).build();
    let app = Router::new()
        .route("/waits", post(waits))
        .route("/fails-first", post(fails_first))
        .route("/at-most-once", post(at_most_once));
    Server::start(app.with_state(runs.clone()).layer(registry.layer())).await
}

/// Sends a request without waiting for its response.
fn begin(server: &Server, path: &str, body: &'static str) -> JoinHandle<Answer> {
    tokio::spawn(answer(server.post(path).header("idempotency-key", "k").body(body)))
}

async fn end(request: JoinHandle<Answer>) -> Answer {
    request.await.expect("the request runs")
}

async fn state(store: &FaultyStore, scope: &str) -> Option<EntryState> {
    let entry = store.inner().get(&RecordKey::new(scope, None, "k")).await.expect("memory answers");
    entry.map(|entry| entry.state)
}

/// Waits until the key has been claimed this many times.
async fn until_claimed(store: &FaultyStore, scope: &str, times: u32) {
    let attempt = async || match state(store, scope).await {
        Some(EntryState::Claimed { attempt, .. }) => attempt,
        _ => 0,
    };
    eventually(attempt, |attempt| *attempt >= times).await;
}

/// Waits until the lease has expired: a request that arrives now does not wait for it.
async fn until_lapsed(store: &FaultyStore, scope: &str) {
    let lapsed = async || matches!(state(store, scope).await, Some(EntryState::Claimed { lease: None, .. }));
    eventually(lapsed, |lapsed| *lapsed).await;
}

#[tokio::test]
async fn handler_with_a_lapsed_lease_keeps_its_key_in_its_process() {
    let (runs, store, logs) = (Runs::held(), FaultyStore::new(), Logs::collect());
    let server = serve(&runs, &store).await;
    let first = begin(&server, "/waits", "tea");
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    until_lapsed(&store, "lapsed-waits").await;
    let duplicate = begin(&server, "/waits", "tea");
    until_claimed(&store, "lapsed-waits", 2).await;

    runs.let_finish(1);
    assert_eq!(end(first).await.text(), "tea 1");
    let duplicate = end(duplicate).await;
    assert_eq!((duplicate.text(), duplicate.is_replay(), runs.started()), ("tea 1", true, 1));
    assert!(
        logs.of_level("WARN").iter().any(|line| line.contains("the handler keeps its key")),
        "{:?}",
        logs.of_level("WARN")
    );
}

#[tokio::test]
async fn its_duplicates_are_in_flight_at_most_once_too() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = serve(&runs, &store).await;
    let first = begin(&server, "/at-most-once", "tea");
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    until_lapsed(&store, "at-most-once").await;

    assert_eq!(end(begin(&server, "/at-most-once", "tea")).await.rejection(), "in_flight");
    assert_eq!(end(begin(&server, "/at-most-once", "ham")).await.rejection(), "key_reused");
    let another_process = serve(&runs, &store).await;
    assert_eq!(end(begin(&another_process, "/at-most-once", "tea")).await.rejection(), "outcome_unknown");

    runs.let_finish(1);
    assert_eq!(end(first).await.text(), "tea 1");
    assert!(end(begin(&server, "/at-most-once", "tea")).await.is_replay());
}

#[tokio::test]
async fn key_kept_beyond_its_lease_is_no_first_claim() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = serve(&runs, &store).await;
    let first = begin(&server, "/fails-first", "");
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    until_lapsed(&store, "fails-first").await;
    let duplicate = begin(&server, "/fails-first", "");
    until_claimed(&store, "fails-first", 2).await;

    store.on_renew(Fault::None);
    runs.let_finish(2);
    assert_eq!(end(first).await.text(), "1");
    assert_eq!((end(duplicate).await.rejection().as_str(), runs.started()), ("not_recorded", 1));
    let retry = end(begin(&server, "/fails-first", "")).await;
    assert_eq!((retry.status, retry.is_replay(), runs.started()), (StatusCode::CREATED, false, 2));
    assert!(retry.text().parse::<u32>().expect("a number") > 2, "{}", retry.text());
}

#[tokio::test]
async fn repeated_release_hides_no_attempt_of_another_process() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let (server, another_process) = (serve(&runs, &store).await, serve(&runs, &store).await);
    store.on_release(Fault::Unreachable);
    store.on_renew(Fault::Unreachable);
    runs.let_finish(1);
    assert_eq!(end(begin(&server, "/fails-first", "")).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    // The other process executes the request, and is cut off from the store.
    until_lapsed(&store, "fails-first").await;
    let cut_off = begin(&another_process, "/fails-first", "");
    runs.until_started(2).await;
    until_lapsed(&store, "fails-first").await;
    let retry = begin(&server, "/fails-first", "");
    until_claimed(&store, "fails-first", 3).await;

    store.on_release(Fault::None);
    store.on_renew(Fault::None);
    runs.until_started(3).await;
    runs.let_finish(2);
    let retry = end(retry).await;
    assert!(retry.text().parse::<u32>().expect("a number") > 2, "{}", retry.text());
    end(cut_off).await;
}

/// Milliseconds decide which of the leases the renewer handles first, so several run at once.
#[tokio::test]
async fn no_claim_goes_to_a_release_that_was_before_it() {
    join_all((0..8).map(|_| release_whose_answer_is_lost())).await;
}

async fn release_whose_answer_is_lost() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = serve(&runs, &store).await;
    store.on_renew(Fault::Unreachable);
    store.on_release(Fault::AnswerIsLost);
    runs.let_finish(1);
    assert_eq!(end(begin(&server, "/fails-first", "")).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(state(&store, "fails-first").await.is_none(), "it was freed, although no answer said so");

    let second = begin(&server, "/fails-first", "");
    runs.until_started(2).await;
    until_lapsed(&store, "fails-first").await;
    let third = begin(&server, "/fails-first", "");
    until_claimed(&store, "fails-first", 2).await;
    let tried = store.ends();
    eventually(async || store.ends(), |ends| *ends > tried).await;
    runs.let_finish(1);
    assert_eq!(end(second).await.text(), "1");
    assert!(end(third).await.is_replay());
    assert_eq!(runs.started(), 2);
}
