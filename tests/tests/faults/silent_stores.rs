//! A store call without an answer in time does not show that the store is unreachable: another client may hold its
//! lock, or this process may have been paused.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use idempotent_runtime::store::SqliteStore;
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Runs, Server, answer, eventually, leave_a_claim};
use sqlx::Sqlite;

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
