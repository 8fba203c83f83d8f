//! Redis and PostgreSQL pause for one second and for ten, with the default limits. If no handler runs under a claim
//! that was sent in a pause, the claim is given back.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::{PostgresStore, RedisStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Idempotency, Registry, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Executions, Server, post_until_answered};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::sync::Mutex;

#[idempotent(scope = "paused-charges")]
async fn create_charge(State(executions): State<Executions>, idempotency: Idempotency) -> String {
    format!("execution {}", executions.count(idempotency.key().unwrap_or_default()))
}

const KEYS: usize = 300;

/// Returns how many requests were rejected. Checks that each key was executed once in the end.
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

#[idempotent(scope = "paused-refunds", lease = "1s")]
async fn create_refund(State(executions): State<Executions>, idempotency: Idempotency) -> String {
    format!("execution {}", executions.count(idempotency.key().unwrap_or_default()))
}

#[idempotent(scope = "paused-payouts", lease = "1s", after_crash = "reject")]
async fn create_payout(State(executions): State<Executions>, idempotency: Idempotency) -> String {
    format!("execution {}", executions.count(idempotency.key().unwrap_or_default()))
}

/// Sends 50 claims to a store that pauses for longer than `store_timeout` and a lease, so no handler runs. Checks that
/// the store has none of these claims in the end.
async fn claims_of_a_pause_are_given_back(path: &str, store: impl StoreAdmin + Clone, signal: impl AsyncFn(&str)) {
    let executions = Executions::default();
    let app = Router::new().route("/refunds", post(create_refund)).route("/payouts", post(create_payout));
    let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(200)).build();
    let server = Server::start(app.with_state(executions.clone()).layer(registry.layer())).await;
    assert_eq!(server.post_with_key(path, "first").await.text(), "execution 1");
    signal("STOP").await;
    let keys: Vec<String> = (0..50).map(|number| format!("k{number}")).collect();
    for answer in join_all(keys.iter().map(|key| server.post_with_key(path, key))).await {
        assert_eq!(answer.rejection(), "store_unavailable");
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    signal("CONT").await;
    assert_eq!(registry.drain(Duration::from_secs(20)).await, 0);
    let entries = store.list(None, 1000).await.expect("it is listed").entries;
    assert_eq!(entries.len(), 1, "nothing ran but the first: {entries:?}");
    for key in &keys {
        assert_eq!(server.post_with_key(path, key).await.text(), "execution 1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_a_paused_redis_are_given_back() {
    for path in ["/refunds", "/payouts"] {
        let redis = RedisServer::start(&[]).await;
        let store = RedisStore::connect(&redis.url()).await.expect("the store opens");
        claims_of_a_pause_are_given_back(path, store, async |signal| redis.signal(signal)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_a_paused_postgres_are_given_back() {
    for path in ["/refunds", "/payouts"] {
        let postgres = PostgresServer::start(&[]).await;
        let store = PostgresStore::new(postgres.database().await.pool(8).await);
        store.migrate().await.expect("the tables are made");
        claims_of_a_pause_are_given_back(path, store, async |signal| postgres.signal(signal)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_a_locked_sqlite_are_given_back() {
    for path in ["/refunds", "/payouts"] {
        let folder = tempfile::tempdir().expect("a folder is made");
        let file = folder.path().join("idempotency.db");
        let store = SqliteStore::open(&file).await.expect("the store opens");
        let options = SqliteConnectOptions::new().filename(&file);
        let other = Mutex::new(SqliteConnection::connect_with(&options).await.expect("the file opens"));
        let signal = async |signal: &str| {
            let statement = if signal == "STOP" { "BEGIN IMMEDIATE" } else { "ROLLBACK" };
            let _ = sqlx::raw_sql(statement).execute(&mut *other.lock().await).await.expect("it has its turn");
        };
        claims_of_a_pause_are_given_back(path, store, signal).await;
    }
}
