//! A store call without an answer in time does not show that the store is unreachable: another client may hold its
//! lock, or this process may have been paused.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::routing::post;
use idempotent_runtime::store::SqliteStore;
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Fault, FaultyStore, PATIENCE, Runs, Server, answer, eventually, leave_a_claim};
use sqlx::Sqlite;
use tower::ServiceExt as _;

/// The runs of the handlers with `on_store_error = "run"`, and those of the handler that holds the lock.
type Shop = (Runs, Runs);

#[idempotent(scope = "silent-runs", on_store_error = "run")]
async fn runs_unguarded(State((runs, _)): State<Shop>) -> String {
    format!("run {}", runs.run().await)
}

#[idempotent(scope = "silent-once", on_store_error = "run", after_crash = "reject", fingerprint = none)]
async fn at_most_once(State((runs, _)): State<Shop>) -> String {
    format!("run {}", runs.run().await)
}

#[idempotent(scope = "silent-holds")]
async fn holds_the_lock(_tx: Tx<Sqlite>, State((_, holding)): State<Shop>) -> String {
    format!("held {}", holding.run().await)
}

/// Blocks its thread, as a handler with a long computation does.
async fn block_the_thread() {
    std::thread::sleep(Duration::from_secs(1));
}

async fn serve(file: &SqliteFile, shop: &Shop) -> (Server, SqliteStore) {
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(300)).build();
    let app = Router::new()
        .route("/runs", post(runs_unguarded))
        .route("/once", post(at_most_once))
        .route("/holds", post(holds_the_lock))
        .route("/blocks", post(block_the_thread));
    (Server::start(app.with_state(shop.clone()).layer(registry.layer())).await, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_beside_a_long_sqlite_transaction_are_not_run() {
    let (file, shop) = (SqliteFile::new(), (Runs::free(), Runs::held()));
    let (server, store) = serve(&file, &shop).await;
    leave_a_claim(&store, "silent-once", Duration::from_millis(100)).await;
    let crashed = async || server.post_with_key("/once", "k").await.rejection();
    eventually(crashed, |code| code == "outcome_unknown").await;
    let holder = tokio::spawn(answer(server.post("/holds").header("idempotency-key", "k")));
    shop.1.until_started(1).await;
    // Each request waits for the whole `store_timeout`. From the second request on, the store has answered no claim for
    // that long.
    for number in 0..4 {
        let rejected = server.post_with_key("/runs", &format!("k{number}")).await;
        assert_eq!(rejected.rejection(), "store_unavailable");
        let code = server.post_with_key("/once", "k").await.rejection();
        assert!(["store_unavailable", "outcome_unknown"].contains(&code.as_str()), "{code}");
    }
    assert_eq!(shop.0.started(), 0);
    shop.1.let_finish(1);
    assert_eq!(holder.await.expect("it is answered").text(), "held 1");
    assert_eq!(server.post_with_key("/runs", "k0").await.text(), "run 1");
}

#[tokio::test]
async fn request_in_flight_in_a_blocked_thread_runs_once() {
    let (file, shop) = (SqliteFile::new(), (Runs::free(), Runs::free()));
    let (server, _) = serve(&file, &shop).await;
    for number in 0..6 {
        let key = format!("k{number}");
        let request = || answer(server.post("/runs").header("idempotency-key", &key));
        tokio::join!(request(), answer(server.post("/blocks")));
        let done = eventually(request, |answer| answer.status.is_success()).await;
        assert_eq!(request().await.text(), done.text());
        assert_eq!(shop.0.started(), number + 1, "{done:?}");
    }
}

/// Without a key, a handler ends with its client, and an unguarded one does too. So it must not begin after its client has left:
/// each impatient retry would run it once more.
#[tokio::test]
async fn client_that_leaves_a_silent_store_runs_nothing_unguarded() {
    let (shop, store) = ((Runs::free(), Runs::free()), FaultyStore::new());
    store.on_claim(Fault::Hangs);
    store.on_get(Fault::Hangs);
    let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(500)).build();
    let app = Router::new().route("/runs", post(runs_unguarded)).with_state(shop.clone()).layer(registry.layer());
    let send = || {
        let request = Request::post("/runs").header("host", "127.0.0.1").header("idempotency-key", "k");
        app.clone().oneshot(request.body(Body::empty()).expect("a well-formed request"))
    };
    for asked in 1..=3 {
        let leaving = tokio::spawn(send());
        eventually(async || store.claims(), |&claims| claims == asked).await;
        leaving.abort();
        assert!(leaving.await.expect_err("it is aborted").is_cancelled());
    }
    assert_eq!(registry.drain(PATIENCE).await, 0, "all claims end");
    assert_eq!(shop.0.started(), 0);
    // A client that stays gets its answer.
    assert_eq!(send().await.expect("infallible").status(), axum::http::StatusCode::OK);
    assert_eq!(shop.0.started(), 1);
}
