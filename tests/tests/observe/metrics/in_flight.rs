//! Running handlers are counted, however they end.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::routing::post;
use idempotent_runtime::metrics::{self, IN_FLIGHT, OLDEST_IN_FLIGHT_SECONDS, WITHOUT_CLIENT};
use idempotent_runtime::store::{MemoryStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{RecordKey, Registry, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Fault, FaultyStore, PATIENCE, Runs, Server, answer, eventually};
use tokio::runtime::Runtime;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;

use crate::exposition::Exposition;

/// A handler in its own scope, so that the tests do not share gauges.
macro_rules! handler {
    ($name:ident, $scope:literal $(, $policy:tt = $value:expr)*) => {
        #[idempotent(scope = $scope $(, $policy = $value)*)]
        async fn $name(State(runs): State<Runs>) {
            assert!(runs.run().await != 13, "the thirteenth run panics");
        }
    };
}

handler!(ends, "in-flight-ends");
handler!(is_left, "in-flight-is-left");
handler!(is_purged, "in-flight-is-purged", lease = "300ms");
handler!(is_dropped, "in-flight-is-dropped");
handler!(is_given_up, "in-flight-is-given-up", ttl = "1s");
handler!(ages, "in-flight-ages");

#[idempotent(scope = "in-flight-panics")]
async fn panics(State(runs): State<Runs>) {
    runs.run().await;
    panic!("always");
}

#[idempotent(scope = "in-flight-transaction")]
async fn in_transaction(_tx: Tx<sqlx::Sqlite>, State(runs): State<Runs>) {
    runs.run().await;
}

fn app(runs: &Runs, store: impl StoreAdmin) -> Router {
    Exposition::begin();
    let registry = Registry::builder(store).store_timeout(Duration::from_millis(100)).build();
    Router::new()
        .route("/ends", post(ends))
        .route("/is-left", post(is_left))
        .route("/is-purged", post(is_purged))
        .route("/is-dropped", post(is_dropped))
        .route("/is-given-up", post(is_given_up))
        .route("/ages", post(ages))
        .route("/panics", post(panics))
        .route("/transaction", post(in_transaction))
        .with_state(runs.clone())
        .layer(registry.layer())
        .layer(CatchPanicLayer::new())
}

fn in_flight(scope: &str) -> Option<f64> {
    Exposition::scrape().value(IN_FLIGHT, &[("scope", scope)])
}

fn without_client(scope: &str) -> Option<f64> {
    Exposition::scrape().value(WITHOUT_CLIENT, &[("scope", scope)])
}

fn oldest(scope: &str) -> f64 {
    Exposition::scrape().value(OLDEST_IN_FLIGHT_SECONDS, &[("scope", scope)]).expect("the scope has a series")
}

async fn until_none_is_in_flight(scope: &str) {
    eventually(async || in_flight(scope), |running| *running == Some(0.0)).await;
    assert_eq!(oldest(scope).to_bits(), 0.0_f64.to_bits(), "{scope}");
}

#[tokio::test]
async fn handlers_that_end_are_not_in_flight_any_more() {
    let runs = Runs::held();
    let server = Server::start(app(&runs, MemoryStore::new())).await;
    let send = |key: &str| tokio::spawn(answer(server.post("/ends").header("idempotency-key", key)));
    let (first, second) = (send("first"), send("second"));
    runs.until_started(2).await;
    server.post_with_key("/ends", "first").await;
    assert_eq!(in_flight("in-flight-ends"), Some(2.0), "a rejected request is no running handler");
    runs.let_finish(1);
    eventually(async || in_flight("in-flight-ends"), |running| *running == Some(1.0)).await;
    runs.let_finish(1);
    first.await.expect("the request runs");
    second.await.expect("the request runs");
    until_none_is_in_flight("in-flight-ends").await;
}

#[tokio::test]
async fn a_handler_whose_client_left_is_in_flight_until_it_has_ended() {
    let runs = Runs::held();
    let server = Server::start(app(&runs, FaultyStore::new())).await;
    let request = b"POST /is-left HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n";
    let connection = server.connect_and_send(request).await;
    runs.until_started(1).await;
    assert_eq!(without_client("in-flight-is-left"), Some(0.0));
    drop(connection);
    // The answer shows that the server has seen the other connection close.
    assert_eq!(server.post_with_key("/is-left", "k").await.rejection(), "in_flight");
    assert_eq!(in_flight("in-flight-is-left"), Some(1.0));
    eventually(async || without_client("in-flight-is-left"), |left| *left == Some(1.0)).await;
    runs.let_finish(1);
    until_none_is_in_flight("in-flight-is-left").await;
    eventually(async || without_client("in-flight-is-left"), |left| *left == Some(0.0)).await;
}

#[tokio::test]
async fn a_handler_that_panics_is_not_in_flight_any_more() {
    let runs = Runs::held();
    let server = Server::start(app(&runs, MemoryStore::new())).await;
    let panics = tokio::spawn(answer(server.post("/panics").header("idempotency-key", "k")));
    runs.until_started(1).await;
    assert_eq!(in_flight("in-flight-panics"), Some(1.0));
    runs.let_finish(1);
    assert_eq!(panics.await.expect("the request runs").status, 500);
    until_none_is_in_flight("in-flight-panics").await;
}

#[tokio::test]
async fn handler_that_lost_its_claim_is_in_flight_until_its_end() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = Server::start(app(&runs, store.clone())).await;
    let another_process = Server::start(app(&runs, store.clone())).await;
    let purged = tokio::spawn(answer(server.post("/is-purged").header("idempotency-key", "k")));
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    assert!(store.purge(&RecordKey::new("in-flight-is-purged", None, "k")).await.expect("the store answers"));
    let next = tokio::spawn(answer(another_process.post("/is-purged").header("idempotency-key", "k")));
    runs.until_started(2).await;
    assert_eq!(in_flight("in-flight-is-purged"), Some(2.0), "both of them run");
    runs.let_finish(2);
    assert_eq!(purged.await.expect("the request runs").rejection(), "claim_lost");
    next.await.expect("the request runs");
    until_none_is_in_flight("in-flight-is-purged").await;
}

#[tokio::test]
async fn a_handler_in_a_transaction_is_in_flight_and_has_an_age() {
    let (runs, file) = (Runs::held(), SqliteFile::new());
    let store = SqliteStore::open(file.path()).await.expect("the file can be opened");
    // Without a short time limit: this store has no slow calls, and the limit would also apply to calls that wait for
    // the write lock.
    let server = Server::start(app(&runs, store)).await;
    let running = tokio::spawn(answer(server.post("/transaction").header("idempotency-key", "k")));
    runs.until_started(1).await;
    assert_eq!(in_flight("in-flight-transaction"), Some(1.0));
    eventually(
        async || {
            metrics::refresh();
            oldest("in-flight-transaction")
        },
        |age| *age > 0.0,
    )
    .await;
    runs.let_finish(1);
    assert_eq!(running.await.expect("the request runs").status, 200);
    until_none_is_in_flight("in-flight-transaction").await;
    // A transaction without a key counts too.
    let unkeyed = tokio::spawn(answer(server.post("/transaction")));
    runs.until_started(2).await;
    assert_eq!(in_flight("in-flight-transaction"), Some(1.0));
    runs.let_finish(1);
    unkeyed.await.expect("the request runs");
    until_none_is_in_flight("in-flight-transaction").await;
}

#[tokio::test]
async fn a_claim_whose_record_is_given_up_is_in_flight_until_then() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    store.on_complete(Fault::Unreachable);
    let server = Server::start(app(&runs, store)).await;
    assert_eq!(server.post_with_key("/is-given-up", "k").await.status, 200);
    assert_eq!(in_flight("in-flight-is-given-up"), Some(1.0), "the record is tried again");
    until_none_is_in_flight("in-flight-is-given-up").await;
}

#[test]
fn handler_dropped_outside_a_runtime_is_in_flight_to_its_end() {
    let runs = Runs::held();
    let app = app(&runs, MemoryStore::new());
    let runtime = Runtime::new().expect("a runtime");
    let request = Request::post("/is-dropped").header("idempotency-key", "k").body(Body::empty());
    let mut call = Box::pin(app.oneshot(request.expect("a well-formed request")));
    runtime.block_on(async {
        tokio::select! {
            _ = &mut call => unreachable!("the handler is held"),
            () = runs.until_started(1) => {}
        }
    });
    assert_eq!(in_flight("in-flight-is-dropped"), Some(1.0));
    drop(call);
    assert_eq!(in_flight("in-flight-is-dropped"), Some(1.0), "its runtime continues it");
    runs.let_finish(1);
    runtime.block_on(until_none_is_in_flight("in-flight-is-dropped"));
}

#[tokio::test(start_paused = true)]
async fn age_of_the_oldest_is_updated_regularly_and_on_request() {
    let runs = Runs::held();
    let app = app(&runs, MemoryStore::new());
    let call = |key: &str| {
        let request = Request::post("/ages").header("idempotency-key", key).body(Body::empty());
        tokio::spawn(app.clone().oneshot(request.expect("a well-formed request")))
    };
    let first = call("first");
    runs.until_started(1).await;
    let age = || (oldest("in-flight-ages") * 10.0).round() / 10.0;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(age().to_string(), "5");
    let second = call("second");
    runs.until_started(2).await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(age().to_string(), "15", "the second one is younger");
    metrics::refresh();
    assert_eq!(age().to_string(), "17");
    runs.let_finish(1);
    tokio::time::timeout(PATIENCE, first).await.expect("in time").expect("the request runs").expect("infallible");
    assert_eq!(age().to_string(), "9", "the second one is the oldest now");
    runs.let_finish(1);
    second.await.expect("the request runs").expect("infallible");
    assert_eq!((age().to_string().as_str(), in_flight("in-flight-ages")), ("0", Some(0.0)));
}
