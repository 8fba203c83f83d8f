//! In a rotation of secrets, a claim that was made without the new secret is taken over: by a handler with a `Tx`, and
//! by a handler that crashes too.

use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{EntryState, Held, MemoryStore, StoreAdmin};
use idempotent_runtime::{Registry, RegistryBuilder, Tx, idempotent};
use idempotent_tests::{Answer, Runs, Server, eventually, leave_a_claim, sealing_key, stores};
use sqlx::{Postgres, Sqlite};

#[idempotent(scope = "secret-takeovers-in-postgres", fingerprint = none)]
async fn in_postgres(_: Tx<Postgres>, State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}", runs.run().await))
}

#[idempotent(scope = "secret-takeovers-in-sqlite", fingerprint = none)]
async fn in_sqlite(_: Tx<Sqlite>, State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}", runs.run().await))
}

/// Checks that a takeover of the claim of a process that sealed nothing runs once and is recorded.
async fn takeover_commits_in_one_run(store: impl StoreAdmin, scope: &str, path: &str) {
    leave_a_claim(&store, scope, Duration::from_millis(100)).await;
    let sealed = Registry::builder(store).seal_with(sealing_key(1));
    let registry = sealed.accept_unsealed_until(SystemTime::now() + Duration::from_hours(24)).build();
    let runs = Runs::free();
    let app = Router::new()
        .route("/postgres", post(in_postgres))
        .route("/sqlite", post(in_sqlite))
        .with_state(runs.clone())
        .layer(registry.layer());
    let server = Server::start(app).await;
    let ask = async || server.post_with_key(path, "k").await;
    let is_done = |answer: &Answer| answer.status.is_success() || answer.rejection() != "in_flight";
    let first = eventually(ask, is_done).await;
    assert_eq!((first.status, first.text()), (StatusCode::CREATED, "run 1"));
    let replay = ask().await;
    assert!(replay.is_replay() && replay.text() == "run 1", "{replay:?}");
}

#[tokio::test]
async fn transaction_over_a_claim_of_another_secret_commits() {
    let postgres = stores::postgres(4).await;
    takeover_commits_in_one_run(postgres, "secret-takeovers-in-postgres", "/postgres").await;
    let (sqlite, _folder) = stores::sqlite().await;
    takeover_commits_in_one_run(sqlite, "secret-takeovers-in-sqlite", "/sqlite").await;
}

#[idempotent(scope = "secret-takeovers", fingerprint = none)]
async fn in_no_transaction(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}", runs.run().await))
}

async fn serve(registry: RegistryBuilder, runs: &Runs) -> Server {
    let app = Router::new().route("/", post(in_no_transaction)).with_state(runs.clone());
    Server::start(app.layer(registry.build().layer())).await
}

/// Checks that a third process runs a request whose handler crashed in two processes. The first process sealed nothing.
/// The third one accepts only what was made with the secret.
async fn claim_that_crashed_twice_is_taken_over(store: impl StoreAdmin + Clone) {
    let (key, token) = leave_a_claim(&store, "secret-takeovers", Duration::from_mins(1)).await;
    assert_eq!(store.renew(&key, token, Duration::ZERO).await.expect("the store answers"), Held::Yes);
    let sealed = || Registry::builder(store.clone()).seal_with(sealing_key(1));
    let (crashing, runs) = (Runs::held(), Runs::free());
    let second = serve(sealed().accept_unsealed_until(SystemTime::now() + Duration::from_hours(24)), &crashing).await;
    let third = serve(sealed(), &runs).await;
    let (_, retry) = tokio::join!(second.post_with_key("/", "k"), async {
        crashing.until_started(1).await;
        let entry = store.get(&key).await.expect("the store answers").expect("the key has an entry");
        let EntryState::Claimed { token, attempt: 2, .. } = entry.state else { panic!("{entry:?}") };
        // The lease ends, as if the process had died.
        assert_eq!(store.renew(&key, token, Duration::ZERO).await.expect("the store answers"), Held::Yes);
        let retry = third.post_with_key("/", "k").await;
        crashing.let_finish(1);
        retry
    });
    assert_eq!((retry.status, retry.text()), (StatusCode::CREATED, "run 1"));
    assert!(third.post_with_key("/", "k").await.is_replay());
}

#[tokio::test]
async fn claim_that_crashed_twice_in_a_rotation_runs_again() {
    claim_that_crashed_twice_is_taken_over(MemoryStore::new()).await;
    let (sqlite, _folder) = stores::sqlite().await;
    claim_that_crashed_twice_is_taken_over(sqlite).await;
    claim_that_crashed_twice_is_taken_over(stores::redis().await).await;
    claim_that_crashed_twice_is_taken_over(stores::postgres(4).await).await;
}
