//! Steps in one process: what runs again and what does not, and what each mistake and fault is told as.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use futures_util::future::join;
use http::StatusCode;
use idempotent_runtime::store::{EntryState, MemoryStore, RedisStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Idempotency, RecordKey, Registry, SealingKey, StepError, StepErrorKind, Tx, idempotent};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Fault, FaultyStore, Logs, PATIENCE, Runs, Server, answer, eventually, stores, take_over};
use serde::{Deserialize, Serialize};
use sqlx::Sqlite;
use tokio::time::timeout;
use tower_http::catch_panic::CatchPanicLayer;

type Result<T, E = Response> = std::result::Result<T, E>;

/// Two sets of executions: of the handler's step, and of the handler.
#[derive(Clone)]
struct Executions {
    step: Runs,
    handler: Runs,
}

impl Executions {
    fn free() -> Self {
        Self { step: Runs::free(), handler: Runs::free() }
    }
}

/// The number of the step's execution; the handler's first answer is not recorded.
#[idempotent(scope = "orders")]
async fn fails_first(
    State(runs): State<Executions>,
    idempotency: Idempotency,
    _: String,
) -> Result<(StatusCode, String)> {
    let reserved = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    let first = runs.handler.run().await == 1;
    Ok((if first { StatusCode::BAD_GATEWAY } else { StatusCode::CREATED }, format!("reservation {reserved}")))
}

#[idempotent(scope = "changed", shared_scope, cache = [201], fingerprint = none)]
async fn before_the_change(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let run = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    Ok(run.to_string())
}

/// The same handler after a change of its code.
#[idempotent(scope = "changed", shared_scope, cache = [201], fingerprint = none)]
async fn after_the_change(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let run = idempotency.step("reserve", || async { Ok::<_, StepError>(format!("run {}", runs.step.run().await)) });
    let error = run.await.expect_err("a number is no text");
    assert!(matches!(error.kind(), StepErrorKind::WrongType(_)), "{error:?}");
    Ok(error.to_string())
}

#[idempotent(scope = "declined")]
async fn step_that_fails_twice(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String, StatusCode> {
    let reserve = async || match runs.step.run().await {
        1 | 2 => Err(StatusCode::PAYMENT_REQUIRED),
        run => Ok(run),
    };
    if idempotency.attempt() == 1 && runs.step.started() == 0 {
        assert_eq!(idempotency.step("reserve", &reserve).await, Err(StatusCode::PAYMENT_REQUIRED));
    }
    let run = idempotency.step("reserve", &reserve).await?;
    Ok(format!("run {run}"))
}

#[idempotent(scope = "twice")]
async fn the_same_name_twice(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let run = async || Ok::<_, Response>(runs.step.run().await);
    idempotency.step("reserve", run).await?;
    let number = idempotency.step("reserve", run).await?;
    Ok(format!("never: {number}"))
}

#[idempotent(scope = "names")]
async fn a_name_that_is_none(State(runs): State<Executions>, idempotency: Idempotency, name: String) -> Result<String> {
    let run = idempotency.step(&name, || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    Ok(run.to_string())
}

// No test would wait for the end of such a lease.
#[idempotent(scope = "step-panics", lease = "1h")]
async fn panics_in_its_step(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let run = idempotency.step("reserve", || async {
        let run = runs.step.run().await;
        assert!(run > 1, "the stock was reserved and then this happened");
        Ok::<_, Response>(run)
    });
    Ok(format!("run {}", run.await?))
}

/// Gives the first step up, and takes one of the same name.
async fn gives_up(runs: &Executions, idempotency: &Idempotency) -> Result<String> {
    let begun = Runs::held();
    let hangs = idempotency.step("reserve", || async { Ok::<_, Response>(begun.run().await) });
    tokio::select! {
        biased;
        _ = hangs => unreachable!("it waits for ever"),
        () = begun.until_started(1) => {}
    }
    let run = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    Ok(format!("run {run}"))
}

#[idempotent(scope = "gives-up", lease = "1h")]
async fn gives_a_step_up(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    gives_up(&runs, &idempotency).await
}

#[idempotent(scope = "gives-up-once", after_crash = "reject")]
async fn gives_a_step_up_and_must_not_rerun(
    State(runs): State<Executions>,
    idempotency: Idempotency,
) -> Result<String> {
    gives_up(&runs, &idempotency).await
}

#[idempotent(scope = "step-two")]
async fn two_steps(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let first = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    let second = idempotency.step("charge", || async { Ok::<_, Response>(runs.handler.run().await) }).await?;
    Ok(format!("{first} {second}"))
}

#[idempotent(scope = "at-once")]
async fn two_steps_at_once(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let step = |name| {
        let runs = runs.clone();
        idempotency.step(name, || async move { Ok::<_, Response>(runs.step.run().await) })
    };
    let (a, b) = join(step("a"), step("b")).await;
    Ok((a? + b?).to_string())
}

#[idempotent(scope = "long", lease = "300ms")]
async fn a_long_step(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let run = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    Ok(run.to_string())
}

#[idempotent(scope = "in-transaction")]
async fn in_a_transaction(State(runs): State<Executions>, _tx: Tx<Sqlite>, idempotency: Idempotency) -> Result<String> {
    let run = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    Ok(run.to_string())
}

#[idempotent(scope = "unguarded", on_store_error = "run")]
async fn runs_without_a_store(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    let run = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    Ok(run.to_string())
}

#[idempotent(scope = "unserialisable")]
async fn a_result_that_is_not_json(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String> {
    #[derive(Serialize, Deserialize)]
    struct Reservation {
        #[serde(skip_serializing)]
        number: usize,
    }
    let reserve = || async { Ok::<_, Response>(Reservation { number: runs.step.run().await }) };
    Ok(idempotency.step("reserve", reserve).await?.number.to_string())
}

async fn serve(runs: &Executions, registry: &Registry) -> Server {
    let app = Router::new()
        .route("/orders", post(fails_first))
        .route("/before-the-change", post(before_the_change))
        .route("/after-the-change", post(after_the_change))
        .route("/declined", post(step_that_fails_twice))
        .route("/twice", post(the_same_name_twice))
        .route("/names", post(a_name_that_is_none))
        .route("/panics", post(panics_in_its_step))
        .route("/gives-up", post(gives_a_step_up))
        .route("/gives-up-once", post(gives_a_step_up_and_must_not_rerun))
        .route("/two", post(two_steps))
        .route("/at-once", post(two_steps_at_once))
        .route("/long", post(a_long_step))
        .route("/in-transaction", post(in_a_transaction))
        .route("/unguarded", post(runs_without_a_store))
        .route("/unserialisable", post(a_result_that_is_not_json))
        .with_state(runs.clone())
        .layer(registry.layer())
        .layer(CatchPanicLayer::new());
    Server::start(app).await
}

async fn a_step_outlives_an_answer_that_is_not_recorded(store: impl StoreAdmin) {
    let (runs, store) = (Executions::free(), Arc::new(store));
    let server = serve(&runs, &Registry::new(Arc::clone(&store))).await;
    let first = server.post_with_key("/orders", "k").await;
    assert_eq!((first.status, first.text()), (StatusCode::BAD_GATEWAY, "reservation 1"));
    let key = RecordKey::new("orders", None, "k");
    assert_eq!(store.get(&key).await.expect("the store answers"), None, "the key is free");
    let second = server.post_with_key("/orders", "k").await;
    assert_eq!((second.status, second.text()), (StatusCode::CREATED, "reservation 1"));
    assert!(!second.is_replay());
    assert_eq!((runs.step.started(), runs.handler.started()), (1, 2));
    let listed = store.list(None, 10).await.expect("the store answers").entries;
    let mut keys: Vec<_> = listed.into_iter().map(|entry| entry.key).collect();
    keys.sort();
    assert_eq!(keys, [key.clone(), key.step("reserve")]);
    let other = server.post_with_key("/orders", "other").await;
    assert_eq!(other.text(), "reservation 2", "another key has steps of its own");
}

#[tokio::test]
async fn on_every_store_a_step_runs_once_for_each_key() {
    let (sqlite, _folder) = stores::sqlite().await;
    let postgres = stores::postgres(4).await;
    let server = RedisServer::start(&[]).await;
    let redis = RedisStore::connect(&server.url()).await.expect("the store opens");
    a_step_outlives_an_answer_that_is_not_recorded(MemoryStore::new()).await;
    a_step_outlives_an_answer_that_is_not_recorded(sqlite).await;
    a_step_outlives_an_answer_that_is_not_recorded(postgres).await;
    a_step_outlives_an_answer_that_is_not_recorded(redis).await;
}

#[tokio::test]
async fn failed_step_records_nothing_and_frees_its_name() {
    let (runs, store) = (Executions::free(), MemoryStore::new());
    let server = serve(&runs, &Registry::new(store.clone())).await;
    assert_eq!(server.post_with_key("/declined", "k").await.status, StatusCode::PAYMENT_REQUIRED);
    assert!(store.is_empty(), "neither the key nor the step is held");
    assert_eq!(server.post_with_key("/declined", "k").await.text(), "run 3");
}

#[tokio::test]
async fn a_result_of_another_type_is_an_error_that_names_the_step() {
    let runs = Executions::free();
    let server = serve(&runs, &Registry::new(MemoryStore::new())).await;
    assert_eq!(server.post_with_key("/before-the-change", "k").await.text(), "1");
    let error = server.post_with_key("/after-the-change", "k").await;
    assert!(error.text().contains("\"reserve\"") && error.text().contains("not of this type"), "{error:?}");
    assert_eq!(runs.step.started(), 1, "it does not run again");
}

#[tokio::test]
async fn request_with_another_fingerprint_gets_no_foreign_steps() {
    let runs = Executions::free();
    let server = serve(&runs, &Registry::new(MemoryStore::new())).await;
    let post = |body| answer(server.post("/orders").header("idempotency-key", "k").body(body));
    assert_eq!(post("ten").await.status, StatusCode::BAD_GATEWAY);
    let other = post("twenty").await;
    assert_eq!((other.status, other.rejection().as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "key_reused"));
    let request = server.post("/orders").header("idempotency-key", "k").header("cookie", "session=2").body("ten");
    assert_eq!(answer(request).await.rejection(), "other_credentials");
    assert_eq!(post("ten").await.text(), "reservation 1");
    assert_eq!(runs.step.started(), 1);
}

#[tokio::test]
async fn second_step_of_one_name_is_an_error_with_and_without_key() {
    let (logs, runs) = (Logs::collect(), Executions::free());
    let server = serve(&runs, &Registry::new(MemoryStore::new())).await;
    for request in [server.post("/twice").header("idempotency-key", "k"), server.post("/twice")] {
        let rejected = answer(request).await;
        assert_eq!(
            (rejected.status, rejected.rejection().as_str()),
            (StatusCode::INTERNAL_SERVER_ERROR, "step_failed")
        );
    }
    assert_eq!(runs.step.started(), 2);
    let errors = logs.of_level("ERROR");
    let told = errors.iter().filter(|line| line.contains("\"reserve\"") && line.contains("has a step of that name"));
    assert_eq!(told.count(), 2, "{errors:?}");
}

#[tokio::test]
async fn a_name_that_is_none_is_an_error_and_the_step_does_not_run() {
    let runs = Executions::free();
    let server = serve(&runs, &Registry::new(MemoryStore::new())).await;
    for name in [String::new(), "a".repeat(256), "line\nbreak".to_owned()] {
        let rejected = answer(server.post("/names").header("idempotency-key", "k").body(name)).await;
        assert_eq!(rejected.rejection(), "step_failed");
    }
    assert_eq!(runs.step.started(), 0);
    for (key, name) in [("long", "a".repeat(255)), ("odd", "é/%0A ".to_owned())] {
        let taken = answer(server.post("/names").header("idempotency-key", key).body(name)).await;
        assert_eq!(taken.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_step_that_panics_may_have_run_and_runs_again_at_once() {
    let runs = Executions::free();
    let server = serve(&runs, &Registry::new(MemoryStore::new())).await;
    assert_eq!(server.post_with_key("/panics", "k").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let second = timeout(PATIENCE, server.post_with_key("/panics", "k")).await.expect("no lease is waited for");
    assert_eq!(second.text(), "run 2");
}

#[tokio::test]
async fn a_step_that_is_given_up_runs_again_and_never_under_reject() {
    let runs = Executions::free();
    let server = serve(&runs, &Registry::new(MemoryStore::new())).await;
    let given_up = timeout(PATIENCE, server.post_with_key("/gives-up", "k")).await.expect("no lease is waited for");
    assert_eq!(given_up.text(), "run 1");
    let rejected = server.post_with_key("/gives-up-once", "k").await;
    assert_eq!((rejected.status, rejected.rejection().as_str()), (StatusCode::CONFLICT, "outcome_unknown"));
    assert_eq!(runs.step.started(), 1);
}

#[tokio::test]
async fn without_a_key_or_a_store_a_step_runs_and_nothing_is_recorded() {
    let (runs, store) = (Executions::free(), FaultyStore::new());
    let server = serve(&runs, &Registry::builder(store.clone()).store_timeout(Duration::from_millis(50)).build()).await;
    for run in 1..=2 {
        assert_eq!(answer(server.post("/long")).await.text(), run.to_string());
    }
    store.on_claim(Fault::Unreachable);
    assert_eq!(server.post_with_key("/unguarded", "k").await.text(), "3");
    assert!(store.inner().is_empty());
}

#[tokio::test]
async fn result_not_recorded_is_an_error_and_recorded_later() {
    let (logs, runs, store) = (Logs::collect(), Executions::free(), FaultyStore::new());
    let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(50)).build();
    let server = serve(&runs, &registry).await;
    store.on_complete(Fault::Unreachable);
    let rejected = server.post_with_key("/two", "k").await;
    assert_eq!(
        (rejected.status, rejected.rejection().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable")
    );
    assert_eq!((runs.step.started(), runs.handler.started()), (1, 0), "nothing goes on as if it were recorded");
    let errors = logs.of_level("ERROR");
    assert!(errors.iter().any(|line| line.contains("a step ran") && line.contains("reserve")), "{errors:?}");
    store.on_complete(Fault::None);
    assert_eq!(server.post_with_key("/two", "k").await.text(), "1 1", "the result of the first execution");
    assert_eq!(runs.step.started(), 1);
    assert_eq!(registry.drain(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn a_step_result_after_its_lease_is_claim_lost() {
    let (runs, store) = (Executions { step: Runs::held(), handler: Runs::free() }, FaultyStore::new());
    let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(50)).build();
    let server = serve(&runs, &registry).await;
    let first = tokio::spawn(answer(server.post("/long").header("idempotency-key", "k")));
    runs.step.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    store.on_complete(Fault::Unreachable);
    let step = RecordKey::new("long", None, "k").step("reserve");
    let state = async || store.get(&step).await.expect("the store answers").expect("it is claimed").state;
    eventually(state, |state| matches!(state, EntryState::Claimed { lease: None, .. })).await;
    runs.step.let_finish(1);
    assert_eq!(first.await.expect("the request runs").rejection(), "claim_lost", "another attempt may have run it");

    store.on_renew(Fault::None);
    store.on_complete(Fault::None);
    eventually(state, |state| matches!(state, EntryState::Completed { .. })).await;
    assert_eq!(registry.drain(Duration::from_secs(5)).await, 0);
    assert_eq!(server.post_with_key("/long", "k").await.text(), "1", "the result of the first execution");
    assert_eq!(runs.step.started(), 1);
}

#[tokio::test]
async fn a_step_does_not_run_while_the_store_cannot_be_asked() {
    let (runs, store) = (Executions { step: Runs::held(), handler: Runs::free() }, FaultyStore::new());
    let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(50)).build();
    let server = serve(&runs, &registry).await;
    let first = tokio::spawn(answer(server.post("/two").header("idempotency-key", "k")));
    runs.step.until_started(1).await;
    store.on_claim(Fault::Unreachable);
    runs.step.let_finish(1);
    assert_eq!(first.await.expect("the request runs").rejection(), "store_unavailable");
    assert_eq!(runs.handler.started(), 0);
    store.on_claim(Fault::None);
    assert_eq!(server.post_with_key("/two", "k").await.text(), "1 1");
    assert_eq!(runs.step.started(), 1);
}

#[tokio::test]
async fn an_attempt_that_lost_its_key_begins_no_step() {
    let (runs, store) = (Executions { step: Runs::held(), handler: Runs::free() }, MemoryStore::new());
    let server = serve(&runs, &Registry::new(store.clone())).await;
    let first = tokio::spawn(answer(server.post("/two").header("idempotency-key", "k")));
    runs.step.until_started(1).await;
    let key = RecordKey::new("step-two", None, "k");
    take_over(&store, &key).await;
    runs.step.let_finish(1);
    let lost = first.await.expect("the request runs");
    assert_eq!((lost.status, lost.rejection().as_str()), (StatusCode::CONFLICT, "claim_lost"));
    assert_eq!(runs.handler.started(), 0, "the second step has not begun");
    assert!(store.purge(&key).await.expect("the store answers"));
    assert_eq!(server.post_with_key("/two", "k").await.text(), "1 1", "its first step counts");
}

#[tokio::test]
async fn a_step_that_another_attempt_still_runs_is_waited_for() {
    let (runs, store) = (Executions { step: Runs::held(), handler: Runs::free() }, MemoryStore::new());
    let server = serve(&runs, &Registry::new(store.clone())).await;
    let another_process = serve(&runs, &Registry::new(store.clone())).await;
    let post = |server: &Server| tokio::spawn(answer(server.post("/two").header("idempotency-key", "k")));
    let first = post(&server);
    runs.step.until_started(1).await;
    let key = RecordKey::new("step-two", None, "k");
    assert!(store.purge(&key).await.expect("the store answers"));
    let second = post(&another_process);
    let entry = async || store.get(&key).await.expect("the store answers");
    eventually(entry, Option::is_some).await;
    runs.step.let_finish(2);
    assert_eq!(second.await.expect("the request runs").text(), "1 1");
    assert_eq!(first.await.expect("the request runs").rejection(), "claim_lost");
    assert_eq!((runs.step.started(), runs.handler.started()), (1, 1));
}

#[tokio::test]
async fn the_lease_of_a_step_is_renewed_however_long_it_runs() {
    let (runs, store) = (Executions { step: Runs::held(), handler: Runs::free() }, MemoryStore::new());
    let server = serve(&runs, &Registry::new(store.clone())).await;
    let first = tokio::spawn(answer(server.post("/long").header("idempotency-key", "k")));
    runs.step.until_started(1).await;
    let step = RecordKey::new("long", None, "k").step("reserve");
    let begun = std::time::Instant::now();
    let held = async || {
        let state = store.get(&step).await.expect("the store answers").expect("it is claimed").state;
        assert!(matches!(state, EntryState::Claimed { lease: Some(_), .. }), "{state:?}");
        begun.elapsed()
    };
    eventually(held, |&elapsed| elapsed > Duration::from_secs(1)).await;
    runs.step.let_finish(1);
    assert_eq!(first.await.expect("the request runs").text(), "1");
}

#[tokio::test]
async fn a_step_goes_on_when_its_client_leaves() {
    let runs = Executions { step: Runs::held(), handler: Runs::free() };
    let server = serve(&runs, &Registry::new(MemoryStore::new())).await;
    let request = b"POST /two HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n";
    drop(server.connect_and_send(request).await);
    runs.step.until_started(1).await;
    runs.step.let_finish(1);
    let ask = async || server.post_with_key("/two", "k").await;
    assert!(eventually(ask, |answer| answer.status == StatusCode::OK).await.is_replay());
    assert_eq!(runs.step.started(), 1);
}

#[tokio::test]
async fn steps_of_different_names_run_at_once() {
    let runs = Executions { step: Runs::held(), handler: Runs::free() };
    let server = serve(&runs, &Registry::new(MemoryStore::new())).await;
    let first = tokio::spawn(answer(server.post("/at-once").header("idempotency-key", "k")));
    runs.step.until_started(2).await;
    runs.step.let_finish(2);
    assert_eq!(first.await.expect("the request runs").text(), "3");
}

#[tokio::test]
async fn a_handler_in_a_transaction_has_no_steps() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sqlite = SqliteStore::open(folder.path().join("idempotency.db")).await.expect("the store opens");
    let runs = Executions::free();
    let server = serve(&runs, &Registry::new(sqlite)).await;
    for request in [server.post("/in-transaction").header("idempotency-key", "k"), server.post("/in-transaction")] {
        assert_eq!(answer(request).await.rejection(), "step_failed");
    }
    assert_eq!(runs.step.started(), 0);
}

#[tokio::test]
async fn result_that_json_changes_is_an_error_in_attempt_one() {
    let (runs, store) = (Executions::free(), MemoryStore::new());
    let server = serve(&runs, &Registry::new(store.clone())).await;
    assert_eq!(server.post_with_key("/unserialisable", "k").await.rejection(), "step_failed");
    assert_eq!(runs.step.started(), 1);
}

#[tokio::test]
async fn steps_are_digested_and_sealed_as_responses_are() {
    let (runs, store) = (Executions::free(), MemoryStore::new());
    let sealing: SealingKey = "1SoV0V1LP1xxwXZLKZpQHvBJWwzJCAkB7L4HmX4Hxm4=".parse().expect("a key");
    let registry = Registry::builder(store.clone()).digest_keys().seal_with(sealing).build();
    let server = serve(&runs, &registry).await;
    server.post_with_key("/orders", "k").await;
    let plain = RecordKey::new("orders", None, "k");
    let step = plain.digested().step("reserve");
    assert_eq!(plain.step("reserve").digested(), step);
    assert!(store.get(&plain.step("reserve")).await.expect("the store answers").is_none());
    let entry = store.get(&step).await.expect("the store answers").expect("it is recorded");
    let EntryState::Completed { body_bytes: Some(bytes), .. } = entry.state else { panic!("{entry:?}") };
    assert!(bytes > 1, "more than the one digit: it is sealed");
    assert_eq!(server.post_with_key("/orders", "k").await.text(), "reservation 1");
    assert_eq!(runs.step.started(), 1);
}

#[tokio::test]
async fn purge_of_a_key_leaves_its_steps_to_their_own_purge() {
    let (runs, store) = (Executions::free(), MemoryStore::new());
    let server = serve(&runs, &Registry::new(store.clone())).await;
    let key = RecordKey::new("step-two", None, "k");
    assert_eq!(server.post_with_key("/two", "k").await.text(), "1 1");
    assert!(store.purge(&key).await.expect("the store answers"));
    assert_eq!(server.post_with_key("/two", "k").await.text(), "1 1");
    for purged in [key.clone(), key.step("reserve")] {
        assert!(store.purge(&purged).await.expect("the store answers"));
    }
    assert_eq!(server.post_with_key("/two", "k").await.text(), "2 1");
}
