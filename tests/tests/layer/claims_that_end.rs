//! A claim that ends while a request is forwarded under it: runs that have begun are awaited, and no run begins too
//! late.

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use idempotent_runtime::store::{EntryState, MemoryStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{AfterCrash, IdempotencyLayer, Policy, RecordKey, Registry, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Fault, FaultyStore, PATIENCE, Runs, Server, answer, eventually, lock};
use sqlx::Sqlite;
use tokio::sync::{Notify, mpsc};
use tower::ServiceExt;
use tower_http::timeout::TimeoutLayer;

async fn text(response: Response) -> String {
    let body = to_bytes(response.into_body(), usize::MAX).await.expect("the body arrives");
    String::from_utf8(body.to_vec()).expect("it is text")
}

/// A response whose body runs the work when it is read.
fn run_in_body(runs: Runs) -> Response {
    let run = async move { Ok::<_, Infallible>(Bytes::from(format!("run {}", runs.run().await))) };
    Body::from_stream(futures_util::stream::once(run)).into_response()
}

#[derive(Clone)]
struct Late {
    runs: Runs,
    go: Arc<Notify>,
    said: mpsc::UnboundedSender<StatusCode>,
}

#[idempotent(scope = "ending-late", shared_scope)]
async fn forwards_late(State(state): State<Late>, request: Request) -> StatusCode {
    let beneath: Router = Router::new().fallback(forwarded_late).with_state(state.runs);
    tokio::spawn(async move {
        state.go.notified().await;
        let response = beneath.oneshot(request).await.expect("a router answers");
        state.said.send(response.status()).expect("the test listens");
    });
    StatusCode::GATEWAY_TIMEOUT
}

#[idempotent(scope = "ending-late", shared_scope)]
async fn forwarded_late(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

/// A retry may run as soon as the store has freed the key. The store's answer may be late or lost.
#[tokio::test]
async fn run_that_would_begin_under_an_ending_claim_is_rejected() {
    for fault in [Fault::ArrivesLate, Fault::Unreachable] {
        let store = FaultyStore::new();
        let registry = Registry::builder(store.clone()).store_timeout(PATIENCE).build();
        let (said, mut hear) = mpsc::unbounded_channel();
        let state = Late { runs: Runs::free(), go: Arc::default(), said };
        let app = Router::new().route("/", post(forwards_late)).with_state(state.clone()).layer(registry.layer());
        let server = Server::start(app).await;
        store.on_release(fault);
        let first = tokio::spawn(answer(server.post("/").header("idempotency-key", "k")));
        eventually(async || store.ends(), |&ends| ends >= 1).await;
        state.go.notify_one();
        assert_eq!(hear.recv().await, Some(StatusCode::CONFLICT));
        store.on_release(Fault::None);
        store.let_through();
        assert_eq!(first.await.expect("it answers").status, StatusCode::GATEWAY_TIMEOUT);
        let key = RecordKey::new("ending-late", None, "k");
        eventually(async || store.get(&key).await.expect("the store answers").is_none(), |is_free| *is_free).await;
        assert_eq!(state.runs.started(), 0);
    }
}

#[idempotent(scope = "ending-drained", shared_scope)]
async fn accepts(State(runs): State<Runs>, request: Request) -> StatusCode {
    let beneath: Router = Router::new().fallback(accepted).with_state(runs.clone());
    tokio::spawn(beneath.oneshot(request));
    runs.until_started(1).await;
    StatusCode::ACCEPTED
}

#[idempotent(scope = "ending-drained", shared_scope)]
async fn accepted(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

#[tokio::test]
async fn drain_waits_for_what_a_recorded_claim_has_covered() {
    let (runs, registry) = (Runs::held(), Registry::new(MemoryStore::new()));
    let app = Router::new().route("/", post(accepts)).with_state(runs.clone()).layer(registry.layer());
    let server = Server::start(app).await;
    assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::ACCEPTED);
    assert_eq!((runs.started(), registry.drain(Duration::from_millis(10)).await), (1, 1));
    runs.let_finish(1);
    assert_eq!((registry.drain(Duration::from_secs(10)).await, runs.finished()), (0, 1));
}

#[idempotent(scope = "ending-body", shared_scope)]
async fn spawns_reader(State(runs): State<Runs>, request: Request) -> StatusCode {
    let beneath: Router = Router::new().fallback(answers_by_body).with_state(runs.clone());
    let reading = async move { text(beneath.oneshot(request).await.expect("a router answers")).await };
    tokio::spawn(reading);
    runs.until_started(1).await;
    StatusCode::GATEWAY_TIMEOUT
}

#[idempotent(scope = "ending-body", shared_scope)]
async fn answers_by_body(State(runs): State<Runs>) -> Response {
    run_in_body(runs)
}

#[tokio::test]
async fn claim_lasts_as_long_as_the_body_of_what_it_covers() {
    let (runs, registry) = (Runs::held(), Registry::new(MemoryStore::new()));
    let app = Router::new().route("/", post(spawns_reader)).with_state(runs.clone()).layer(registry.layer());
    let server = Server::start(app).await;
    assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(server.post_with_key("/", "k").await.rejection(), "in_flight");
    assert_eq!((runs.started(), registry.drain(Duration::from_millis(10)).await), (1, 1));
    runs.let_finish(1);
    assert_eq!((registry.drain(Duration::from_secs(10)).await, runs.finished()), (0, 1));
}

#[idempotent(scope = "ending-cut-body", shared_scope, after_crash = "reject")]
async fn leaves_body(State(runs): State<Runs>, request: Request) -> StatusCode {
    let beneath: Router = Router::new().fallback(answers_by_body_once).with_state(runs.clone());
    let response = beneath.oneshot(request).await.expect("a router answers");
    tokio::select! {
        _ = text(response) => unreachable!("the run is held"),
        () = runs.until_started(1) => StatusCode::GATEWAY_TIMEOUT,
    }
}

#[idempotent(scope = "ending-cut-body", shared_scope, after_crash = "reject")]
async fn answers_by_body_once(State(runs): State<Runs>) -> Response {
    run_in_body(runs)
}

#[tokio::test]
async fn covered_body_that_is_cut_off_is_an_unknown_outcome() {
    let runs = Runs::held();
    let app = Router::new().route("/", post(leaves_body)).with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(MemoryStore::new()).layer())).await;
    assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(server.post_with_key("/", "k").await.rejection(), "outcome_unknown");
    assert_eq!(runs.started(), 1);
}

#[idempotent(scope = "ending-lost-answer", after_crash = "reject")]
async fn answers(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

/// The handler has ended, and a middleware that still works on its response is dropped.
#[tokio::test]
async fn covered_answer_that_gets_lost_is_an_unknown_outcome() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let slow = async |request: Request, next: Next| {
        let response = next.run(request).await;
        pending::<()>().await;
        response
    };
    let timeout = TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(100));
    let policy = Policy::builder("ending-lost-answer").after_crash(AfterCrash::Reject).build().expect("a valid policy");
    let app = Router::new()
        .route("/", post(answers))
        .with_state(runs.clone())
        .layer(registry.layer())
        .layer(from_fn(slow))
        .layer(timeout)
        .layer(IdempotencyLayer::new(policy).with_registry(registry));
    let server = Server::start(app).await;
    assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(server.post_with_key("/", "k").await.rejection(), "outcome_unknown");
    assert_eq!(runs.started(), 1);
}

type Kept = Arc<Mutex<Option<Request>>>;

#[idempotent(scope = "ending-kept", shared_scope, on_store_error = "run")]
async fn keeps(State((_, kept)): State<(Runs, Kept)>, request: Request) -> StatusCode {
    *lock(&kept) = Some(request);
    StatusCode::ACCEPTED
}

#[idempotent(scope = "ending-kept", shared_scope)]
async fn does_kept(State((runs, _)): State<(Runs, Kept)>) -> String {
    format!("run {}", runs.run().await)
}

#[tokio::test]
async fn request_kept_by_an_unguarded_handler_claims_its_key() {
    let (store, runs, kept) = (FaultyStore::new(), Runs::free(), Kept::default());
    let (registry, state) = (Registry::new(store.clone()), (runs.clone(), kept.clone()));
    let app = Router::new().route("/", post(keeps)).with_state(state.clone()).layer(registry.layer());
    let later: Router = Router::new().fallback(does_kept).with_state(state).layer(registry.layer());
    let server = Server::start(app).await;
    store.on_claim(Fault::Unreachable);
    store.on_get(Fault::Unreachable);
    assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::ACCEPTED);
    store.on_get(Fault::None);
    store.on_claim(Fault::None);
    let request = lock(&kept).take().expect("it is kept");
    assert_eq!(text(later.oneshot(request).await.expect("a router answers")).await, "run 1");
    let entry = store.get(&RecordKey::new("ending-kept", None, "k")).await.expect("the store answers");
    assert!(entry.is_some_and(|entry| matches!(entry.state, EntryState::Completed { .. })));
}

#[idempotent(scope = "ending-tx-body", shared_scope)]
async fn answers_by_forwarding(State(runs): State<Runs>, _tx: Tx<Sqlite>, request: Request) -> Response {
    let beneath: Router = Router::new().fallback(driven_by_body).with_state(runs.clone());
    let mut sending = Box::pin(beneath.oneshot(request));
    tokio::select! {
        _ = &mut sending => unreachable!("the run is held"),
        () = runs.until_started(1) => {}
    }
    let rest = async move {
        let response = sending.await.expect("a router answers");
        Ok::<_, Infallible>(Bytes::from(text(response).await))
    };
    Body::from_stream(futures_util::stream::once(rest)).into_response()
}

#[idempotent(scope = "ending-tx-body", shared_scope)]
async fn driven_by_body(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

#[tokio::test]
async fn body_of_a_tx_handler_drives_what_it_forwarded() {
    let file = SqliteFile::new();
    let (runs, store) = (Runs::held(), SqliteStore::open(file.path()).await.expect("the file opens"));
    let app = Router::new().route("/", post(answers_by_forwarding)).with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(store).layer())).await;
    let first = tokio::spawn(answer(server.post("/").header("idempotency-key", "k")));
    runs.until_started(1).await;
    runs.let_finish(1);
    let first = tokio::time::timeout(PATIENCE, first).await.expect("it does not wait for itself");
    assert_eq!(first.expect("it answers").text(), "run 1");
    assert!(server.post_with_key("/", "k").await.is_replay());
}

/// Waits a moment, or moves the request to another task.
#[idempotent(scope = "ending-tx-cut", shared_scope, lease = "1s")]
async fn forwards_in_tx(State(runs): State<Runs>, mut tx: Tx<Sqlite>, request: Request) -> StatusCode {
    sqlx::query("INSERT INTO charges (id) VALUES ('outer')").execute(&mut *tx).await.expect("it is inserted");
    let is_spawned = request.headers().contains_key("x-spawn");
    let beneath: Router = Router::new().fallback(runs_beneath_tx).with_state(runs.clone());
    let mut sending = Box::pin(beneath.oneshot(request));
    tokio::select! {
        _ = &mut sending => unreachable!("the run is held"),
        () = runs.until_started(1) => {}
    }
    if is_spawned {
        tokio::spawn(sending);
        return StatusCode::ACCEPTED;
    }
    StatusCode::GATEWAY_TIMEOUT
}

#[idempotent(scope = "ending-tx-cut", shared_scope)]
async fn runs_beneath_tx(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

async fn serve_tx(runs: &Runs) -> (SqliteFile, Server, Registry) {
    let file = SqliteFile::new();
    file.execute("CREATE TABLE charges (id TEXT)").await;
    let registry = Registry::new(SqliteStore::open(file.path()).await.expect("the file opens"));
    let app = Router::new().route("/", post(forwards_in_tx)).with_state(runs.clone());
    let server = Server::start(app.layer(registry.layer())).await;
    (file, server, registry)
}

#[tokio::test]
async fn tx_handler_answers_before_what_it_has_given_up() {
    let runs = Runs::held();
    let (file, server, registry) = serve_tx(&runs).await;
    assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::GATEWAY_TIMEOUT);
    // The forwarded request still runs, and no second one runs meanwhile.
    assert!(!server.post_with_key("/", "k").await.status.is_success());
    assert_eq!((runs.started(), runs.finished(), registry.drain(Duration::from_millis(10)).await), (1, 0, 1));
    runs.let_finish(1);
    assert_eq!(registry.drain(PATIENCE).await, 0);
    assert_eq!(file.number("SELECT count(*) FROM charges").await, 0);
}

#[tokio::test]
async fn tx_handler_is_committed_after_what_it_has_spawned() {
    let runs = Runs::held();
    let (file, server, registry) = serve_tx(&runs).await;
    let send = || answer(server.post("/").header("idempotency-key", "k").header("x-spawn", "1"));
    assert_eq!(send().await.rejection(), "store_unavailable");
    assert_eq!((runs.finished(), file.number("SELECT count(*) FROM charges").await), (0, 0));
    runs.let_finish(1);
    assert_eq!(registry.drain(PATIENCE).await, 0);
    let retry = send().await;
    assert_eq!((retry.status, retry.is_replay(), runs.started()), (StatusCode::ACCEPTED, true, 1));
    assert_eq!(file.number("SELECT count(*) FROM charges").await, 1);
}
