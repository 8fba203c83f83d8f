//! A handler with a `Tx` takes over a claim that was made with another secret, as after a change of the handler in a rotation.

use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::StoreAdmin;
use idempotent_runtime::{Registry, Tx, idempotent};
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

/// The claim is of a process that sealed nothing.
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
