//! Steps in one process: which steps run again, and how each mistake is reported.

use std::sync::Arc;

use http::StatusCode;
use idempotent_runtime::store::{EntryState, MemoryStore, RedisStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{RecordKey, Registry, SealingKey};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Logs, PATIENCE, Runs, answer, stores};
use tokio::time::timeout;

use super::handlers::{Executions, serve};

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
    let logs = Logs::collect();
    let rejected = answer(server.post("/names").header("idempotency-key", "k").body("é".repeat(500_000))).await;
    assert_eq!(rejected.rejection(), "step_failed");
    assert!(logs.text().contains("a step of a handler cannot be taken"), "{}", logs.text());
    assert!(logs.text().len() < 4_096, "{} bytes are logged", logs.text().len());
    assert_eq!(runs.step.started(), 0);
    for (key, name) in [("long", "a".repeat(255)), ("odd", "é/%0A ".to_owned())] {
        let taken = answer(server.post("/names").header("idempotency-key", key).body(name)).await;
        assert_eq!(taken.status, StatusCode::OK);
    }
}

/// Eight such results would fill a store that the responses of the handler could never fill.
#[tokio::test]
async fn result_over_max_body_is_not_kept_and_its_step_not_repeated() {
    let (runs, store) = (Executions::free(), MemoryStore::new());
    let server = serve(&runs, &Registry::new(store.clone())).await;
    let post = async |key: &str, bytes: &'static str| {
        answer(server.post("/large").header("idempotency-key", key).body(bytes)).await
    };
    assert_eq!(post("fits", "1024").await.text(), "1022");
    for _ in 1..=2 {
        assert_eq!(post("k", "1025").await.rejection(), "step_failed");
    }
    assert_eq!(runs.step.started(), 2, "it ran once under each key");
    let entry = store.get(&RecordKey::new("large-result", None, "k").step("reserve")).await.expect("memory answers");
    let state = entry.expect("the execution is recorded").state;
    assert!(matches!(&state, EntryState::Completed { body_bytes: None, .. }), "{state:?}");
}

#[tokio::test]
async fn a_step_that_panics_may_have_run_and_runs_again_at_once() {
    let runs = Executions::free();
    let server = serve(&runs, &Registry::new(MemoryStore::new())).await;
    assert_eq!(server.post_with_key("/panics", "k").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let second = timeout(PATIENCE, server.post_with_key("/panics", "k")).await.expect("it waits for no lease");
    assert_eq!(second.text(), "run 2");
}

#[tokio::test]
async fn a_step_that_is_given_up_runs_again_and_never_under_reject() {
    let runs = Executions::free();
    let server = serve(&runs, &Registry::new(MemoryStore::new())).await;
    let given_up = timeout(PATIENCE, server.post_with_key("/gives-up", "k")).await.expect("it waits for no lease");
    assert_eq!(given_up.text(), "run 1");
    let rejected = server.post_with_key("/gives-up-once", "k").await;
    assert_eq!((rejected.status, rejected.rejection().as_str()), (StatusCode::CONFLICT, "outcome_unknown"));
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
async fn result_that_json_reads_as_none_is_an_error() {
    let (runs, store) = (Executions::free(), MemoryStore::new());
    let server = serve(&runs, &Registry::new(store.clone())).await;
    for kind in ["unit", "nested", "float", "some-float"] {
        let answer = server.post_with_key(&format!("/lossy/{kind}"), kind).await;
        assert_eq!(answer.rejection(), "step_failed", "{kind}: {}", answer.text());
    }
    let kept = server.post_with_key("/lossy/kept", "kept").await;
    assert_eq!(kept.text(), r#"(Some(1.5), None, (), Some("null"), Ok(()), [None, Some(7)])"#);
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
