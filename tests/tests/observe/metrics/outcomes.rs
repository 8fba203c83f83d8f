//! Every outcome is counted once, for the scope in which it happened.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::stream;
use idempotent_runtime::metrics::{LEASE_LOST_TOTAL, REPLAY_AGE_SECONDS, REQUESTS_TOTAL};
use idempotent_runtime::store::{MemoryStore, SqliteStore};
use idempotent_runtime::{RecordKey, Registry, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Fault, FaultyStore, Runs, Server, answer, eventually, take_over};
use tower_http::catch_panic::CatchPanicLayer;

use crate::exposition::Exposition;

#[idempotent(scope = "outcomes", required, fingerprint = &body, max_body = "1KiB")]
async fn ends_as_asked(State(runs): State<Runs>, body: String) -> (StatusCode, Body) {
    runs.run().await;
    match body.as_str() {
        "fail" => (StatusCode::BAD_GATEWAY, Body::empty()),
        "large" => (StatusCode::OK, Body::from("x".repeat(10_000))),
        "break" => {
            let broken =
                stream::iter([Ok(Bytes::from_static(b"part")), Err(std::io::Error::other("the disk is gone"))]);
            (StatusCode::OK, Body::from_stream(broken))
        }
        "panic" => panic!("as asked"),
        _ => (StatusCode::CREATED, Body::from("charged")),
    }
}

#[idempotent(scope = "outcomes-at-most-once", after_crash = "reject")]
async fn panics() {
    panic!("always");
}

#[idempotent(scope = "outcomes-unguarded", on_store_error = "run")]
async fn runs_unguarded() {}

#[idempotent(scope = "outcomes-transaction")]
async fn without_transactions(_tx: Tx<sqlx::Sqlite>) {}

#[idempotent(scope = "outcomes-fenced", lease = "300ms")]
async fn fenced(State(runs): State<Runs>) {
    runs.run().await;
}

#[idempotent(scope = "outcomes-fenced-400", lease = "300ms")]
async fn fenced_and_rejecting(State(runs): State<Runs>) -> StatusCode {
    runs.run().await;
    StatusCode::BAD_REQUEST
}

async fn serve(runs: &Runs, registry: Registry) -> Server {
    Exposition::begin();
    let app = Router::new()
        .route("/", post(ends_as_asked))
        .route("/at-most-once", post(panics))
        .route("/unguarded", post(runs_unguarded))
        .route("/transaction", post(without_transactions))
        .route("/fenced", post(fenced))
        .route("/fenced-400", post(fenced_and_rejecting))
        .with_state(runs.clone())
        .layer(registry.layer())
        .layer(CatchPanicLayer::new());
    Server::start(app).await
}

/// The outcomes of a scope that were counted, with their counts.
fn counted(scope: &str) -> Vec<(String, f64)> {
    let exposition = Exposition::scrape();
    let of_scope = exposition.samples().iter().filter(|sample| sample.name == REQUESTS_TOTAL);
    let of_scope = of_scope.filter(|sample| sample.labels["scope"] == scope && sample.value > 0.0);
    let mut counted: Vec<_> = of_scope.map(|sample| (sample.labels["outcome"].clone(), sample.value)).collect();
    counted.sort_by(|a, b| a.0.cmp(&b.0));
    counted
}

fn once(outcomes: &[&str]) -> Vec<(String, f64)> {
    outcomes.iter().map(|&outcome| (outcome.to_owned(), 1.0)).collect()
}

#[tokio::test]
async fn every_outcome_is_counted_once() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let registry =
        Registry::builder(store.clone()).store_timeout(Duration::from_millis(100)).max_in_flight_per_caller(2).build();
    let server = serve(&runs, registry).await;
    let post = |key: &str, body: &'static str| answer(server.post("/").header("idempotency-key", key).body(body));
    let first = tokio::spawn(post("first", "charge"));
    runs.until_started(1).await;
    post("first", "charge").await;
    post("first", "other").await;
    let second = tokio::spawn(post("second", "fail"));
    runs.until_started(2).await;
    post("third", "charge").await;
    runs.let_finish(1000);
    assert_eq!(first.await.expect("the request runs").status, StatusCode::CREATED);
    second.await.expect("the request runs");
    assert!(post("first", "charge").await.is_replay());
    post("large", "large").await;
    post("large", "large").await;
    let broken = server.post("/").header("idempotency-key", "break").body("break");
    let read = async { broken.send().await?.bytes().await };
    assert!(read.await.is_err(), "its connection breaks too");
    post("panic", "panic").await;
    post("not,a,key", "charge").await;
    answer(server.post("/").body("charge")).await;
    store.on_claim(Fault::Full);
    post("full", "charge").await;
    store.on_claim(Fault::Unreachable);
    store.on_get(Fault::Unreachable);
    server.post_with_key("/unguarded", "k").await;
    store.on_get(Fault::None);
    store.on_claim(Fault::None);
    store.on_complete(Fault::Unreachable);
    assert_eq!(post("unrecorded", "charge").await.status, StatusCode::CREATED);
    store.on_complete(Fault::None);
    server.post_with_key("/at-most-once", "k").await;
    server.post_with_key("/at-most-once", "k").await;
    server.post_with_key("/transaction", "k").await;
    assert_eq!(
        counted("outcomes"),
        once(&[
            "broken",
            "in_flight",
            "invalid_key",
            "key_reused",
            "missing_key",
            "not_recorded",
            "panicked",
            "recorded",
            "recording_failed",
            "replayed",
            "response_not_recorded",
            "store_unavailable",
            "too_large",
            "too_many_in_flight",
        ])
    );
    assert_eq!(counted("outcomes-unguarded"), once(&["unguarded"]));
    assert_eq!(counted("outcomes-at-most-once"), once(&["outcome_unknown", "panicked"]));
    assert_eq!(counted("outcomes-transaction"), once(&["transaction_failed"]));
}

#[tokio::test]
async fn lost_claim_seen_by_renewal_and_end_counts_once() {
    let (runs, store) = (Runs::held(), MemoryStore::new());
    let server = serve(&runs, Registry::new(store.clone())).await;
    let lost = || Exposition::scrape().value(LEASE_LOST_TOTAL, &[("scope", "outcomes-fenced")]);
    let fenced = tokio::spawn(answer(server.post("/fenced").header("idempotency-key", "k")));
    runs.until_started(1).await;
    assert_eq!(lost(), Some(0.0), "the series is there before its first event");
    take_over(&store, &RecordKey::new("outcomes-fenced", None, "k")).await;
    eventually(async || lost(), |lost| *lost == Some(1.0)).await;
    runs.let_finish(1);
    assert_eq!(fenced.await.expect("the request runs").rejection(), "claim_lost");
    assert_eq!((lost(), counted("outcomes-fenced")), (Some(1.0), once(&["claim_lost"])));
}

#[tokio::test]
async fn lost_claim_of_an_unrecorded_status_is_not_an_outcome() {
    let (runs, store) = (Runs::held(), MemoryStore::new());
    let server = serve(&runs, Registry::new(store.clone())).await;
    let fenced = tokio::spawn(answer(server.post("/fenced-400").header("idempotency-key", "k")));
    runs.until_started(1).await;
    take_over(&store, &RecordKey::new("outcomes-fenced-400", None, "k")).await;
    let lost = || Exposition::scrape().value(LEASE_LOST_TOTAL, &[("scope", "outcomes-fenced-400")]);
    eventually(async || lost(), |lost| *lost == Some(1.0)).await;
    runs.let_finish(1);
    assert_eq!(fenced.await.expect("the request runs").status, StatusCode::BAD_REQUEST);
    eventually(async || counted("outcomes-fenced-400"), |counted| !counted.is_empty()).await;
    assert_eq!((lost(), counted("outcomes-fenced-400")), (Some(1.0), once(&["not_recorded"])));
}

#[idempotent(scope = "replayed-late")]
async fn replayed_late() {}

#[tokio::test]
async fn a_replay_tells_how_old_its_record_is() {
    const TWO_HOURS: f64 = 7_200.0;
    Exposition::begin();
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.expect("the file can be opened");
    let app = Router::new().route("/", post(replayed_late)).layer(Registry::new(store).layer());
    let server = Server::start(app).await;
    server.post_with_key("/", "k").await;
    file.execute("UPDATE idempotency_records SET recorded_at = recorded_at - 7200000").await;
    let ages = || {
        let exposition = Exposition::scrape();
        let (sum, bucket) = (format!("{REPLAY_AGE_SECONDS}_sum"), format!("{REPLAY_AGE_SECONDS}_bucket"));
        (exposition.value(&sum, &[]).unwrap_or(0.0), exposition.value(&bucket, &[("le", "3600")]).unwrap_or(0.0))
    };
    let before = ages();
    assert!(server.post_with_key("/", "k").await.is_replay());
    // Other tests replay records meanwhile, but only young ones.
    let after = ages();
    assert!((TWO_HOURS..TWO_HOURS + 600.0).contains(&(after.0 - before.0)), "{before:?} {after:?}");
}
