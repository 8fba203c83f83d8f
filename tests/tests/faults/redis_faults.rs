//! Redis is killed or pauses under load: requests are rejected, none is executed twice, and the application needs no
//! restart. A Redis that restarts from a snapshot has lost the later records.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::RedisStore;
use idempotent_runtime::{Idempotency, Registry, idempotent};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Executions, Server, eventually, post_until_answered};

#[idempotent(scope = "redis-charges")]
async fn create_charge(State(executions): State<Executions>, idempotency: Idempotency) -> String {
    format!("execution {}", executions.count(idempotency.key().unwrap_or_default()))
}

/// Returns how many requests were rejected while `disturb` ran. Checks that each key was executed once in the end.
async fn rejected_while(disturb: impl AsyncFn(&RedisServer)) -> usize {
    const KEYS: usize = 2000;

    let redis = RedisServer::start(&[]).await;
    let store = RedisStore::connect(&redis.url()).await.expect("the store opens");
    let registry = Registry::builder(store).store_timeout(Duration::from_millis(500)).build();
    let executions = Executions::default();
    let app = Router::new().route("/charges", post(create_charge)).with_state(executions.clone());
    let server = Server::start(app.layer(registry.layer())).await;
    let disturbing = async {
        executions.ten_more().await;
        assert!(executions.total() < KEYS, "the fault comes while requests are under way");
        disturb(&redis).await;
    };
    let posting = post_until_answered(&server, "/charges", "k", KEYS);
    let ((answers, rejected), ()) = tokio::join!(posting, disturbing);
    assert!(answers.iter().all(|answer| answer.text() == "execution 1"));
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), KEYS);
    assert_eq!((executions.total(), executions.repeated()), (KEYS, Vec::new()));
    rejected
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_and_restart_under_load_executes_nothing_twice() {
    // A restart may be over before a store call gives up, so the number of rejections is not checked.
    rejected_while(async |redis| redis.restart().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_stopped_for_five_seconds_executes_nothing_twice() {
    let rejected = rejected_while(async |redis| {
        redis.signal("STOP");
        // The duration of the fault.
        tokio::time::sleep(Duration::from_secs(5)).await;
        redis.signal("CONT");
    });
    assert!(rejected.await > 0, "no store call waits for five seconds");
}

/// A restored backup has the same effect as a restart from a snapshot.
#[tokio::test]
async fn redis_restored_to_a_snapshot_executes_later_requests_again() {
    let redis = RedisServer::start(&["--appendonly no"]).await;
    let store = RedisStore::connect(&redis.url()).await.expect("the store opens");
    let executions = Executions::default();
    let app = Router::new().route("/charges", post(create_charge)).with_state(executions.clone());
    let server = Server::start(app.layer(Registry::new(store).layer())).await;
    assert_eq!(server.post_with_key("/charges", "before").await.text(), "execution 1");
    let _: String = redis.command("SAVE").await;
    assert_eq!(server.post_with_key("/charges", "after").await.text(), "execution 1");
    redis.restart().await;
    let again = async |key| {
        let answer = async || server.post_with_key("/charges", key).await;
        eventually(answer, |answer| answer.status == StatusCode::OK).await
    };
    assert!(again("before").await.is_replay());
    let after = again("after").await;
    assert_eq!((after.text(), after.is_replay()), ("execution 2", false), "its record is not in the snapshot");
}
