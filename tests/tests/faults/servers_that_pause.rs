//! Redis and PostgreSQL stand still, for a second and for ten, with the limits that an application has by default.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use idempotent_runtime::store::{PostgresStore, RedisStore, StoreAdmin};
use idempotent_runtime::{Idempotency, Registry, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Executions, Server, post_until_answered};

#[idempotent(scope = "paused-charges")]
async fn create_charge(State(executions): State<Executions>, idempotency: Idempotency) -> String {
    format!("execution {}", executions.count(idempotency.key().unwrap_or_default()))
}

const KEYS: usize = 300;

/// How many requests were rejected, of which each has been executed once in the end.
async fn rejected_while(store: impl StoreAdmin, signal: impl Fn(&str), pause: Duration) -> usize {
    let executions = Executions::default();
    let app = Router::new().route("/charges", post(create_charge)).with_state(executions.clone());
    let server = Server::start(app.layer(Registry::new(store).layer())).await;
    let pausing = async {
        executions.ten_more().await;
        signal("STOP");
        tokio::time::sleep(pause).await;
        signal("CONT");
    };
    let ((answers, rejected), ()) = tokio::join!(post_until_answered(&server, "/charges", "k", KEYS), pausing);
    assert!(answers.iter().all(|answer| answer.text() == "execution 1"));
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), KEYS);
    assert_eq!((executions.total(), executions.repeated()), (KEYS, Vec::new()));
    rejected
}

async fn rejected_by_redis(pause: Duration) -> usize {
    let redis = RedisServer::start(&[]).await;
    let store = RedisStore::connect(&redis.url()).await.expect("the store opens");
    rejected_while(store, |signal| redis.signal(signal), pause).await
}

async fn rejected_by_postgres(pause: Duration) -> usize {
    let postgres = PostgresServer::start(&[]).await;
    let store = PostgresStore::new(postgres.database().await.pool(8).await);
    store.migrate().await.expect("the tables are made");
    rejected_while(store, |signal| postgres.signal(signal), pause).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_pauses_for_a_second_is_waited_for() {
    assert_eq!(rejected_by_redis(Duration::from_secs(1)).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_paused_for_ten_seconds_executes_nothing_twice() {
    assert!(rejected_by_redis(Duration::from_secs(10)).await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_pauses_for_a_second_is_waited_for() {
    assert_eq!(rejected_by_postgres(Duration::from_secs(1)).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_paused_for_ten_seconds_executes_nothing_twice() {
    assert!(rejected_by_postgres(Duration::from_secs(10)).await > 0);
}
