//! Duplicates of a request that still runs.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::{MemoryStore, SqliteStore, Store};
use idempotent_runtime::{Idempotency, Registry, idempotent};
use idempotent_tests::{FaultyStore, Runs, Server, answer, eventually, leave_a_claim};

#[idempotent(scope = "rejects")]
async fn rejects(State(runs): State<Runs>, _body: String) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "waits", in_flight = wait("20s"))]
async fn waits(State(runs): State<Runs>, _body: String) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "waits-shortly", in_flight = wait("50ms"))]
async fn waits_shortly(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "waits-for-failure", in_flight = wait("20s"))]
async fn waits_for_failure(State(runs): State<Runs>) -> (StatusCode, String) {
    let run = runs.run().await;
    let status = if run == 1 { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::CREATED };
    (status, format!("charge {run}"))
}

#[idempotent(scope = "waits-for-a-process", fingerprint = none, in_flight = wait("20s"))]
async fn waits_for_a_process(State(runs): State<Runs>, idempotency: Idempotency) -> (StatusCode, String) {
    runs.run().await;
    (StatusCode::CREATED, format!("attempt {}", idempotency.attempt()))
}

async fn serve(runs: &Runs, store: impl Store) -> Server {
    let app = Router::new()
        .route("/rejects", post(rejects))
        .route("/waits", post(waits))
        .route("/waits-shortly", post(waits_shortly))
        .route("/waits-for-failure", post(waits_for_failure))
        .route("/waits-for-a-process", post(waits_for_a_process))
        .with_state(runs.clone())
        .layer(Registry::new(store).layer());
    Server::start(app).await
}

async fn fifty_at_once_run_once(store: impl Store) {
    let runs = Runs::held();
    let server = serve(&runs, store).await;
    let (answers, ()) = tokio::join!(join_all((0..50).map(|_| server.post_with_key("/rejects", "k"))), async {
        runs.until_started(1).await;
        runs.let_finish(50);
    });
    let (created, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == StatusCode::CREATED);
    assert_eq!(runs.started(), 1);
    assert!(created.iter().all(|answer| answer.text() == "charge 1"));
    assert_eq!(created.iter().filter(|answer| !answer.is_replay()).count(), 1);
    for answer in refused {
        assert_eq!((answer.status, answer.refusal().as_str()), (StatusCode::CONFLICT, "in_flight"));
        assert_eq!(answer.headers["retry-after"], "1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_at_once_run_once_in_memory() {
    fifty_at_once_run_once(MemoryStore::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_at_once_run_once_in_sqlite() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = SqliteStore::open(folder.path().join("idempotency.db")).await.expect("the store opens");
    fifty_at_once_run_once(store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_waiters_get_the_response_of_the_one_that_runs() {
    let runs = Runs::held();
    let server = serve(&runs, MemoryStore::new()).await;
    let (answers, ()) = tokio::join!(join_all((0..50).map(|_| server.post_with_key("/waits", "k"))), async {
        runs.until_started(1).await;
        runs.let_finish(50);
    });
    assert_eq!(runs.started(), 1);
    assert!(answers.iter().all(|answer| answer.status == StatusCode::CREATED && answer.text() == "charge 1"));
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), 1);
}

#[tokio::test]
async fn a_waiter_that_gives_up_is_refused_and_changes_nothing() {
    let runs = Runs::held();
    let server = serve(&runs, MemoryStore::new()).await;
    let first = tokio::spawn(answer(server.post("/waits-shortly").header("idempotency-key", "k")));
    runs.until_started(1).await;
    let begun = std::time::Instant::now();
    let waiter = server.post_with_key("/waits-shortly", "k").await;
    assert_eq!((waiter.status, waiter.refusal().as_str()), (StatusCode::CONFLICT, "in_flight"));
    assert!(begun.elapsed() >= Duration::from_millis(50), "it waited");
    runs.let_finish(1);
    assert_eq!(first.await.expect("the request runs").text(), "charge 1");
    assert!(server.post_with_key("/waits-shortly", "k").await.is_replay());
}

#[tokio::test]
async fn waiters_of_a_failed_request_execute_nothing() {
    for duplicates in [10, 40] {
        let (runs, store) = (Runs::held(), FaultyStore::new());
        let server = serve(&runs, store.clone()).await;
        let first = tokio::spawn(answer(server.post("/waits-for-failure").header("idempotency-key", "k")));
        runs.until_started(1).await;
        let waiters = join_all((0..duplicates).map(|_| server.post_with_key("/waits-for-failure", "k")));
        let finish = async {
            eventually(async || store.claims(), |&claims| claims > duplicates).await;
            runs.let_finish(1000);
        };
        let (waiters, ()) = tokio::join!(waiters, finish);
        assert_eq!(first.await.expect("the request runs").status, StatusCode::INTERNAL_SERVER_ERROR);
        for waiter in waiters {
            assert_eq!((waiter.status, waiter.refusal().as_str()), (StatusCode::CONFLICT, "not_recorded"));
            assert_eq!(waiter.headers["retry-after"], "1");
            let detail = waiter.json()["detail"].as_str().expect("checked").to_owned();
            assert!(detail.contains("ran nothing") && detail.contains("with the same key"), "{detail}");
        }
        assert_eq!(runs.started(), 1);
        assert_eq!(store.claims(), 1 + duplicates, "one claim each");
        let retry = server.post_with_key("/waits-for-failure", "k").await;
        assert_eq!((retry.status, retry.text()), (StatusCode::CREATED, "charge 2"));
    }
}

#[tokio::test]
async fn waiters_of_a_success_share_one_look() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = serve(&runs, store.clone()).await;
    let first = tokio::spawn(answer(server.post("/waits").header("idempotency-key", "k")));
    runs.until_started(1).await;
    let waiters = join_all((0..40).map(|_| server.post_with_key("/waits", "k")));
    let finish = async {
        eventually(async || store.claims(), |&claims| claims > 40).await;
        runs.let_finish(1);
    };
    let (waiters, ()) = tokio::join!(waiters, finish);
    assert_eq!(first.await.expect("the request runs").text(), "charge 1");
    assert!(waiters.iter().all(|waiter| waiter.is_replay() && waiter.text() == "charge 1"));
    assert!(store.claims() <= 1 + 40 + 2, "{} claims", store.claims());
}

#[tokio::test]
async fn a_waiter_of_a_dead_process_executes_nothing() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let server = serve(&runs, store.clone()).await;
    let _ = leave_a_claim(&store, "waits-for-a-process", Duration::from_millis(300)).await;
    let waiter = server.post_with_key("/waits-for-a-process", "k").await;
    assert_eq!((waiter.refusal().as_str(), runs.started()), ("not_recorded", 0));
    assert_eq!(server.post_with_key("/waits-for-a-process", "k").await.text(), "attempt 2");
}

#[tokio::test]
async fn another_request_under_a_running_key_is_422_at_once() {
    for path in ["/rejects", "/waits"] {
        let runs = Runs::held();
        let server = serve(&runs, MemoryStore::new()).await;
        let first = tokio::spawn(answer(server.post(path).header("idempotency-key", "k").body("tea")));
        runs.until_started(1).await;
        let other = answer(server.post(path).header("idempotency-key", "k").body("ham")).await;
        assert_eq!((other.status, other.refusal().as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "key_reused"));
        runs.let_finish(1);
        assert_eq!(first.await.expect("the request runs").status, StatusCode::CREATED);
    }
}
