//! Handlers with short leases behind a store that fails, and requests to them.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{EntryState, StoreAdmin};
use idempotent_runtime::{Idempotency, RecordKey, Registry, Tx, idempotent};
use idempotent_tests::{Answer, FaultyStore, Runs, Server, answer};
use sqlx::Sqlite;
use tokio::task::JoinHandle;
use tower_http::catch_panic::CatchPanicLayer;

type Charged = (StatusCode, String);

async fn charge(runs: &Runs, idempotency: &Idempotency, body: &str) -> Charged {
    runs.run().await;
    (StatusCode::CREATED, format!("{body} of attempt {}", idempotency.attempt()))
}

#[idempotent(scope = "brief", ttl = "1s", lease = "1s")]
async fn brief(State(runs): State<Runs>, idempotency: Idempotency, body: String) -> Charged {
    charge(&runs, &idempotency, &body).await
}

#[idempotent(scope = "outage", ttl = "1s", lease = "200ms")]
async fn outage(State(runs): State<Runs>, idempotency: Idempotency, body: String) -> Charged {
    charge(&runs, &idempotency, &body).await
}

#[idempotent(scope = "forgotten-blocks", ttl = "1s", lease = "1s")]
async fn blocks(State(runs): State<Runs>, idempotency: Idempotency, body: String) -> Charged {
    let charged = charge(&runs, &idempotency, &body).await;
    // The claim is forgotten before this ends.
    std::thread::sleep(Duration::from_millis(2_200));
    charged
}

#[idempotent(scope = "purged", lease = "300ms")]
async fn purged(State(runs): State<Runs>, idempotency: Idempotency, body: String) -> Charged {
    charge(&runs, &idempotency, &body).await
}

#[idempotent(scope = "sent", lease = "1s")]
async fn sent(State(runs): State<Runs>, idempotency: Idempotency, body: String) -> Charged {
    charge(&runs, &idempotency, &body).await
}

#[idempotent(scope = "sent-once", lease = "1s", after_crash = "reject")]
async fn sent_once(State(runs): State<Runs>, idempotency: Idempotency, body: String) -> Charged {
    charge(&runs, &idempotency, &body).await
}

#[idempotent(scope = "panics", lease = "300ms", after_crash = "reject")]
async fn panics(State(runs): State<Runs>) {
    runs.run().await;
    panic!("always");
}

#[idempotent(scope = "fails", lease = "300ms")]
async fn fails(State(runs): State<Runs>, idempotency: Idempotency) -> Charged {
    runs.run().await;
    (StatusCode::BAD_GATEWAY, format!("attempt {}", idempotency.attempt()))
}

#[idempotent(scope = "unguarded", on_store_error = "run")]
async fn unguarded(State(runs): State<Runs>, idempotency: Idempotency, body: String) -> Charged {
    charge(&runs, &idempotency, &body).await
}

#[idempotent(scope = "both", shared_scope, lease = "300ms")]
async fn plain(State(runs): State<Runs>) {
    runs.run().await;
}

#[idempotent(scope = "both", shared_scope)]
async fn in_transaction(_tx: Tx<Sqlite>, State(runs): State<Runs>) {
    runs.run().await;
}

/// Starts one process.
pub(super) async fn serve(runs: &Runs, store: &FaultyStore<impl StoreAdmin>) -> Server {
    serve_within(Duration::from_millis(100), runs, store).await
}

pub(super) async fn serve_within(limit: Duration, runs: &Runs, store: &FaultyStore<impl StoreAdmin>) -> Server {
    let registry = Registry::builder(store.clone()).store_timeout(limit).build();
    let app = Router::new()
        .route("/brief", post(brief))
        .route("/outage", post(outage))
        .route("/blocks", post(blocks))
        .route("/purged", post(purged))
        .route("/sent", post(sent))
        .route("/sent-once", post(sent_once))
        .route("/panics", post(panics))
        .route("/fails", post(fails))
        .route("/unguarded", post(unguarded))
        .route("/plain", post(plain))
        .route("/in-transaction", post(in_transaction));
    Server::start(app.with_state(runs.clone()).layer(registry.layer()).layer(CatchPanicLayer::new())).await
}

/// Sends a request without waiting for its response.
pub(super) fn begin(server: &Server, path: &str, body: &'static str) -> JoinHandle<Answer> {
    tokio::spawn(answer(server.post(path).header("idempotency-key", "k").body(body)))
}

pub(super) async fn end(request: JoinHandle<Answer>) -> Answer {
    request.await.expect("the request runs")
}

/// Returns the rejection of a second request, which must not be executed.
pub(super) async fn rejection(server: &Server, path: &str, body: &'static str, runs: &Runs) -> String {
    let before = runs.started();
    tokio::select! {
        answer = end(begin(server, path, body)) => answer.rejection(),
        () = runs.until_started(before + 1) => panic!("{body} is executed"),
    }
}

pub(super) fn key(scope: &str) -> RecordKey {
    RecordKey::new(scope, None, "k")
}

pub(super) async fn state(store: &FaultyStore<impl StoreAdmin>, scope: &str) -> Option<EntryState> {
    store.inner().get(&key(scope)).await.expect("the store answers").map(|entry| entry.state)
}

pub(super) async fn purge(store: &FaultyStore<impl StoreAdmin>, scope: &str) {
    assert!(store.purge(&key(scope)).await.expect("the store answers"));
}
