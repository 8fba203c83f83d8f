//! Responses that a store never accepts, and responses that it does not accept for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{PostgresStore, RedisStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Idempotency, Registry, StepError, StepErrorKind, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Logs, Runs, Server, eventually};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const MEGABYTE: usize = 1024 * 1024;

#[idempotent(scope = "large-reports")]
async fn create_report(State(runs): State<Runs>) -> String {
    runs.run().await;
    "x".repeat(2 * MEGABYTE)
}

#[idempotent(scope = "large-reports-again", oversize = "rerun")]
async fn create_report_again(State(runs): State<Runs>) -> String {
    runs.run().await;
    "x".repeat(2 * MEGABYTE)
}

#[idempotent(scope = "large-steps")]
async fn create_report_in_a_step(
    State(runs): State<Runs>,
    idempotency: Idempotency,
) -> Result<&'static str, StepError> {
    let report = async || {
        runs.run().await;
        Ok::<_, StepError>("x".repeat(2 * MEGABYTE))
    };
    let report = idempotency.step("report", report).await;
    if let Err(error) = &report {
        assert!(matches!(error.kind(), StepErrorKind::TooLarge), "{error:?}");
    }
    report.map(|_| "done")
}

async fn redis_store(url: &str) -> RedisStore {
    RedisStore::builder(url).open().await.expect("the store opens")
}

async fn serve(store: impl StoreAdmin, runs: &Runs) -> (Server, Registry) {
    let registry = Registry::new(store);
    let app = Router::new()
        .route("/reports", post(create_report))
        .route("/again", post(create_report_again))
        .route("/steps", post(create_report_in_a_step));
    (Server::start(app.with_state(runs.clone()).layer(registry.layer())).await, registry)
}

#[tokio::test]
async fn record_too_large_for_redis_is_told_and_not_retried() {
    let redis = RedisServer::start(&["--proto-max-bulk-len 1mb"]).await;
    let () = redis.command("ACL SETUSER app reset on >secret ~* &* +@all -config").await;
    for (number, url) in [redis.url(), redis.url().replace("redis://", "redis://app:secret@")].iter().enumerate() {
        is_told_and_not_retried(redis_store(url).await, &format!("k{number}")).await;
    }
}

async fn is_told_and_not_retried(store: impl StoreAdmin, key: &str) {
    let runs = Runs::free();
    let (server, registry) = serve(store, &runs).await;
    let first = server.post_with_key("/reports", key).await;
    assert_eq!((first.status, first.text().len()), (StatusCode::OK, 2 * MEGABYTE));
    let retry = server.post_with_key("/reports", key).await;
    assert_eq!(retry.rejection(), "response_not_recorded");
    assert_eq!(registry.drain(Duration::ZERO).await, 0, "nothing tries to record it any more");
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn record_that_postgres_rejects_is_told_and_not_retried() {
    for rejects in [
        "ALTER TABLE idempotency.records ADD CHECK (length(body) < 1000000)",
        "CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'too long'; END $$; \
         CREATE TRIGGER reject BEFORE UPDATE ON idempotency.records FOR EACH ROW WHEN (length(NEW.body) > 1000000) \
         EXECUTE FUNCTION reject()",
    ] {
        let pool = PostgresServer::shared().await.database().await.pool(4).await;
        let store = PostgresStore::new(pool.clone());
        store.migrate().await.expect("the tables are made");
        let _ = sqlx::raw_sql(rejects).execute(&pool).await.expect("an administrator may");
        is_told_and_not_retried(store, "k").await;
    }
}

#[tokio::test]
async fn record_that_sqlite_rejects_is_told_and_not_retried() {
    let folder = tempfile::tempdir().expect("a folder is made");
    let path = folder.path().join("idempotency.db");
    let store = SqliteStore::open(&path).await.expect("the store opens");
    let options = SqliteConnectOptions::new().filename(&path);
    let mut connection = SqliteConnection::connect_with(&options).await.expect("the file opens");
    let rejects = "CREATE TRIGGER reject BEFORE UPDATE ON idempotency_records WHEN length(NEW.body) > 1000000 \
                   BEGIN SELECT RAISE(ABORT, 'too long'); END";
    let _ = sqlx::raw_sql(rejects).execute(&mut connection).await.expect("an administrator may");
    is_told_and_not_retried(store, "k").await;
}

#[tokio::test]
async fn record_too_large_for_redis_runs_again_if_the_policy_says_so() {
    let redis = RedisServer::start(&["--proto-max-bulk-len 1mb"]).await;
    let runs = Runs::free();
    let (server, _) = serve(redis_store(&redis.url()).await, &runs).await;
    for number in 1..=2 {
        assert_eq!(server.post_with_key("/again", "k").await.status, StatusCode::OK);
        assert_eq!(runs.started(), number);
    }
}

#[tokio::test]
async fn step_result_too_large_for_redis_is_told() {
    let logs = Logs::collect();
    let redis = RedisServer::start(&["--proto-max-bulk-len 1mb"]).await;
    let () = redis.command("ACL SETUSER app reset on >secret ~* &* +@all -config").await;
    for (number, url) in [redis.url(), redis.url().replace("redis://", "redis://app:secret@")].iter().enumerate() {
        let runs = Runs::free();
        let (server, registry) = serve(redis_store(url).await, &runs).await;
        let key = format!("s{number}");
        for _ in 1..=3 {
            assert_eq!(server.post_with_key("/steps", &key).await.rejection(), "step_failed", "{url}");
        }
        assert_eq!(registry.drain(Duration::ZERO).await, 0, "nothing tries to record it any more");
        assert_eq!(runs.started(), 1);
    }
    assert!(logs.text().contains("too large for the store: let the step return less"), "{}", logs.text());
}

/// Opens a store over a proxy that breaks the connection in each of the first two large calls. A load balancer, or a
/// server that restarts twice, can do the same.
async fn redis_behind_what_breaks_two_large_calls(redis: &RedisServer) -> RedisStore {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let url = format!("redis://{}/", listener.local_addr().expect("a bound listener has an address"));
    let (left, target) = (Arc::new(AtomicUsize::new(2)), redis.address());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (left, target) = (Arc::clone(&left), target.clone());
            tokio::spawn(async move {
                let mut server = TcpStream::connect(target).await.expect("Redis answers");
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.split(), server.split());
                let requests = async {
                    let (mut sent, mut buffer) = (0, vec![0; 65536]);
                    while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
                        sent += length;
                        let take = |left: usize| left.checked_sub(1);
                        if sent > MEGABYTE && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
                            return;
                        }
                        to_server.write_all(&buffer[..length]).await.expect("Redis reads");
                    }
                };
                tokio::select! {
                    () = requests => {}
                    _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
                }
            });
        }
    });
    redis_store(&url).await
}

#[tokio::test]
async fn two_connections_that_break_make_no_record_too_large() {
    for path in ["/reports", "/again"] {
        let redis = RedisServer::start(&[]).await;
        let runs = Runs::free();
        let (server, _) = serve(redis_behind_what_breaks_two_large_calls(&redis).await, &runs).await;
        assert_eq!(server.post_with_key(path, "k").await.status, StatusCode::OK);
        let retry = server.post_with_key(path, "k").await;
        assert!(retry.is_replay() && retry.text().len() == 2 * MEGABYTE, "{path}: {}", retry.status);
        assert_eq!(runs.started(), 1, "{path}");
    }
}

/// PostgreSQL also uses the error code 54000 when it has no transaction ids left until the next vacuum.
#[tokio::test]
async fn postgres_that_rejects_every_record_for_a_while_gets_it() {
    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("the tables are made");
    let rejects = "CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS $$ \
                   BEGIN RAISE 'no transaction ids' USING ERRCODE = '54000'; END $$; \
                   CREATE TRIGGER reject BEFORE UPDATE ON idempotency.records FOR EACH ROW EXECUTE FUNCTION reject()";
    let _ = sqlx::raw_sql(rejects).execute(&pool).await.expect("an administrator may");
    let runs = Runs::free();
    let (server, _) = serve(store, &runs).await;
    assert_eq!(server.post_with_key("/reports", "k").await.status, StatusCode::OK);
    let _ =
        sqlx::raw_sql("DROP TRIGGER reject ON idempotency.records").execute(&pool).await.expect("an administrator may");
    let retry = async || server.post_with_key("/reports", "k").await;
    let retry =
        eventually(retry, |retry| retry.status != StatusCode::CONFLICT || retry.rejection() != "in_flight").await;
    assert!(retry.is_replay() && retry.text().len() == 2 * MEGABYTE, "{}", retry.status);
    assert_eq!(runs.started(), 1);
}
