//! Duplicates of a request that still runs.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::{MemoryStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Idempotency, RecordKey, Registry, idempotent};
use idempotent_tests::{Fault, FaultyStore, Runs, Server, Wrapped, Wrapper, answer, eventually, leave_a_claim};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::timeout;

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

fn app(runs: &Runs, store: impl StoreAdmin) -> Router {
    Router::new()
        .route("/rejects", post(rejects))
        .route("/waits", post(waits))
        .route("/waits-shortly", post(waits_shortly))
        .route("/waits-for-failure", post(waits_for_failure))
        .route("/waits-for-a-process", post(waits_for_a_process))
        .with_state(runs.clone())
        .layer(Registry::new(store).layer())
}

async fn serve(runs: &Runs, store: impl StoreAdmin) -> Server {
    Server::start(app(runs, store)).await
}

async fn fifty_at_once_run_once(store: impl StoreAdmin) {
    let runs = Runs::held();
    let server = serve(&runs, store).await;
    let (answers, ()) = tokio::join!(join_all((0..50).map(|_| server.post_with_key("/rejects", "k"))), async {
        runs.until_started(1).await;
        runs.let_finish(50);
    });
    let (created, rejected): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == StatusCode::CREATED);
    assert_eq!(runs.started(), 1);
    assert!(created.iter().all(|answer| answer.text() == "charge 1"));
    assert_eq!(created.iter().filter(|answer| !answer.is_replay()).count(), 1);
    for answer in rejected {
        assert_eq!((answer.status, answer.rejection().as_str()), (StatusCode::CONFLICT, "in_flight"));
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
async fn a_waiter_that_gives_up_is_rejected_and_changes_nothing() {
    let runs = Runs::held();
    let server = serve(&runs, MemoryStore::new()).await;
    let first = tokio::spawn(answer(server.post("/waits-shortly").header("idempotency-key", "k")));
    runs.until_started(1).await;
    let begun = std::time::Instant::now();
    let waiter = server.post_with_key("/waits-shortly", "k").await;
    assert_eq!((waiter.status, waiter.rejection().as_str()), (StatusCode::CONFLICT, "in_flight"));
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
            assert_eq!((waiter.status, waiter.rejection().as_str()), (StatusCode::CONFLICT, "not_recorded"));
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
async fn many_resting_waiters_cause_few_looks() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = serve(&runs, store.clone()).await;
    let first = tokio::spawn(answer(server.post("/waits").header("idempotency-key", "k")));
    runs.until_started(1).await;
    let waiters = join_all((0..300).map(|_| server.post_with_key("/waits", "k")));
    let finish = async {
        eventually(async || store.claims(), |&claims| claims > 300).await;
        // In the end, each waiter looks every 250 ms, however many waiters there are.
        let (begun, before) = (std::time::Instant::now(), store.looks());
        eventually(async || store.looks(), |&looks| looks >= before + 12).await;
        let (looks, took) = (store.looks() - before, begun.elapsed());
        assert!(took >= Duration::from_secs(2), "{looks} looks in {took:?}");
        runs.let_finish(1);
    };
    let (waiters, ()) = tokio::join!(waiters, finish);
    assert_eq!(first.await.expect("the request runs").text(), "charge 1");
    assert!(waiters.iter().all(|waiter| waiter.is_replay() && waiter.text() == "charge 1"));
    assert!(store.claims() <= 1 + 300 + 2, "{} claims", store.claims());
}

#[tokio::test]
async fn a_waiter_of_a_dead_process_executes_nothing() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let server = serve(&runs, store.clone()).await;
    let _ = leave_a_claim(&store, "waits-for-a-process", Duration::from_millis(300)).await;
    let waiter = server.post_with_key("/waits-for-a-process", "k").await;
    assert_eq!((waiter.rejection().as_str(), runs.started()), ("not_recorded", 0));
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
        assert_eq!((other.status, other.rejection().as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "key_reused"));
        runs.let_finish(1);
        assert_eq!(first.await.expect("the request runs").status, StatusCode::CREATED);
    }
}

/// Reports no changes, so that waiters depend on their own timers.
#[derive(Clone)]
struct Silent(MemoryStore);

impl Wrapper for Silent {
    fn inner(&self) -> &impl StoreAdmin {
        &self.0
    }

    async fn changed(&self, _: &RecordKey) {
        pending::<()>().await;
    }
}

/// A runtime that serves until it is told to leave. Then it ends, or no thread drives it any more.
struct Leaving {
    address: SocketAddr,
    leave: oneshot::Sender<()>,
    has_left: oneshot::Receiver<()>,
    _kept: mpsc::Sender<()>,
}

impl Leaving {
    fn start(mut builder: Builder, app: Router, ends: bool) -> Self {
        let (listening, address) = mpsc::channel();
        let (leave, leaves) = oneshot::channel();
        let (left, has_left) = oneshot::channel();
        let (kept, until_dropped) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = builder.enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                // Runs on a worker thread, so that it ends with the runtime.
                let server = tokio::spawn(Server::start(app)).await.expect("the server starts");
                listening.send(server.address()).expect("the test waits");
                let _ = leaves.await;
            });
            let runtime = if ends {
                runtime.shutdown_background();
                None
            } else {
                Some(runtime)
            };
            left.send(()).expect("the test waits");
            // The test drops the other end.
            let _ = until_dropped.recv();
            drop(runtime);
        });
        Self { address: address.recv().expect("it serves"), leave, has_left, _kept: kept }
    }
}

/// Each of two runtimes of one process has a waiter for the same key, and the runtime of the first waiter leaves.
async fn waiter_outlives_the_first_waiters_runtime(builder: Builder, ends: bool) {
    let (runs, memory) = (Runs::held(), MemoryStore::new());
    let owner = serve(&runs, memory.clone()).await;
    let store = FaultyStore::around(Wrapped(Silent(memory)));
    let waiting = app(&runs, store.clone());
    let leaving = Leaving::start(builder, waiting.clone(), ends);
    let staying = Server::start(waiting).await;
    let first = tokio::spawn(answer(owner.post("/waits").header("idempotency-key", "k")));
    runs.until_started(1).await;

    let url = format!("http://{}/waits", leaving.address);
    let left_alone = tokio::spawn(reqwest::Client::new().post(url).header("idempotency-key", "k").send());
    eventually(async || store.looks(), |&looks| looks > 1).await;
    let waiter = tokio::spawn(answer(staying.post("/waits").header("idempotency-key", "k")));
    eventually(async || store.claims(), |&claims| claims == 2).await;
    // The request has claimed, and waits from then on. Only a further look shows that from outside.
    let looks = store.looks();
    eventually(async || store.looks(), |&now| now > looks).await;
    leaving.leave.send(()).expect("it serves");
    leaving.has_left.await.expect("it leaves");

    runs.let_finish(1);
    assert_eq!(first.await.expect("the request runs").text(), "charge 1");
    let waiter = timeout(Duration::from_secs(3), waiter).await.expect("the waiter waits on its own clock");
    let waiter = waiter.expect("it is answered");
    assert!(waiter.is_replay() && waiter.text() == "charge 1", "{}", waiter.text());
    assert_eq!(runs.started(), 1);
    left_alone.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiter_outlives_a_runtime_that_is_not_driven() {
    waiter_outlives_the_first_waiters_runtime(Builder::new_current_thread(), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiter_outlives_a_runtime_of_one_thread_that_ends() {
    waiter_outlives_the_first_waiters_runtime(Builder::new_current_thread(), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiter_outlives_a_runtime_of_many_threads_that_ends() {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2);
    waiter_outlives_the_first_waiters_runtime(builder, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_gives_back_what_an_undriven_runtime_holds() {
    let store = FaultyStore::new();
    let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(100)).build();
    let app = Router::new().route("/rejects", post(rejects)).with_state(Runs::free()).layer(registry.layer());
    let leaving = Leaving::start(Builder::new_current_thread(), app, false);
    store.on_claim(Fault::AnswerIsLost);
    store.on_release(Fault::Unreachable);
    let url = format!("http://{}/rejects", leaving.address);
    let rejected = answer(reqwest::Client::new().post(url).header("idempotency-key", "k")).await;
    assert_eq!(rejected.rejection(), "store_unavailable");
    eventually(async || store.ends(), |&ends| ends > 0).await;
    leaving.leave.send(()).expect("it serves");
    leaving.has_left.await.expect("it leaves");
    store.on_release(Fault::None);

    let ends = store.ends();
    let drained = timeout(Duration::from_secs(10), registry.drain(Duration::from_secs(20))).await;
    assert_eq!(drained, Ok(0), "another runtime gives it back");
    assert!(store.ends() > ends, "it was tried again");
}
