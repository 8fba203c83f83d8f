//! Steps while the store fails, leases expire or clients leave.

use std::time::Duration;

use http::StatusCode;
use idempotent_runtime::store::{EntryState, MemoryStore, StoreAdmin};
use idempotent_runtime::{RecordKey, Registry};
use idempotent_tests::{Fault, FaultyStore, Logs, Runs, Server, answer, eventually, take_over};

use super::handlers::{Executions, serve};

#[tokio::test]
async fn without_a_key_or_a_store_a_step_runs_and_nothing_is_recorded() {
    let (runs, store) = (Executions::free(), FaultyStore::new());
    let server = serve(&runs, &Registry::builder(store.clone()).store_timeout(Duration::from_millis(50)).build()).await;
    for run in 1..=2 {
        assert_eq!(answer(server.post("/long")).await.text(), run.to_string());
    }
    store.on_claim(Fault::Unreachable);
    store.on_get(Fault::Unreachable);
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
async fn step_of_a_lost_attempt_is_waited_for_two_leases() {
    let (runs, store) = (Executions { step: Runs::held(), handler: Runs::free() }, MemoryStore::new());
    let server = serve(&runs, &Registry::new(store.clone())).await;
    let another_process = serve(&runs, &Registry::new(store.clone())).await;
    let post = |server: &Server| tokio::spawn(answer(server.post("/long-elsewhere").header("idempotency-key", "k")));
    let first = post(&server);
    runs.step.until_started(1).await;
    let key = RecordKey::new("long-elsewhere", None, "k");
    // The first attempt may claim the key again before the second one does.
    let second = async || {
        assert!(store.purge(&key).await.expect("the store answers"));
        let second = post(&another_process).await.expect("the request runs");
        (second.rejection(), second.headers.contains_key("retry-after"), runs.handler.started())
    };
    let answered = eventually(second, |(.., waited)| *waited == 1).await;
    assert_eq!(answered, ("in_flight".to_owned(), true, 1));
    runs.step.let_finish(1);
    first.await.expect("the request runs");
    eventually(async || post(&another_process).await.expect("the request runs").text().to_owned(), |text| text == "1")
        .await;
    assert_eq!(runs.step.started(), 1);
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
