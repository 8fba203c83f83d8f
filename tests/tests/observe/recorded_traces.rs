//! A record keeps the trace of the request that made it, in every store, and its replays refer to that trace.

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use idempotent_runtime::store::{MemoryStore, PostgresStore, RedisStore, SqliteStore};
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Answer, Logs, Runs, Server, answer, sealing_key};

use crate::exposition::Exposition;

const FIRST: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const RETRY: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[idempotent(scope = "traced-charges")]
async fn create_charge(State(runs): State<Runs>) -> (HeaderMap, String) {
    let mut headers = HeaderMap::new();
    headers.insert("x-charge", "1".parse().expect("a header's value"));
    headers.insert("idempotency-recorded-by", "the handler's own".parse().expect("a header's value"));
    (headers, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "transaction")]
async fn in_transaction(_tx: Tx<sqlx::Sqlite>) {}

async fn serve(registry: &Registry) -> Server {
    Exposition::begin();
    let app = Router::new().route("/", post(create_charge)).route("/transaction", post(in_transaction));
    Server::start(app.with_state(Runs::free()).layer(registry.layer())).await
}

async fn send(server: &Server, path: &str, key: &str, trace: &str) -> Answer {
    answer(server.post(path).header("idempotency-key", key).header("traceparent", trace)).await
}

/// The traces to which the replays in these logs refer.
fn told(logs: &Logs) -> Vec<String> {
    let text = logs.text();
    // Not the lines of closed spans: sqlx's thread for SQLite also holds the span of a request, and may be the last one
    // to close it.
    let ended =
        text.lines().filter(|line| line.contains("idempotent{") && line.contains("a guarded request has ended"));
    let replays = ended.filter(|line| line.contains("idempotency.outcome=\"replayed\""));
    let of_replay = |line: &str| {
        let (_, trace) = line.split_once("idempotency.recorded_by=\"")?;
        trace.split('"').next().map(str::to_owned)
    };
    replays.map(|line| of_replay(line).unwrap_or_default()).collect()
}

async fn is_kept_in(registry: &Registry) {
    let (server, logs) = (serve(registry).await, Logs::collect());
    let first = send(&server, "/", "k", FIRST).await;
    let replay = send(&server, "/", "k", RETRY).await;
    assert!(!first.is_replay() && replay.is_replay());
    assert_eq!((replay.text(), &replay.headers["x-charge"]), ("charge 1", &first.headers["x-charge"]));
    assert!(!replay.headers.contains_key("idempotency-recorded-by"), "{replay:?}");
    assert_eq!(told(&logs), ["4bf92f3577b34da6a3ce929d0e0e4736"]);
}

#[tokio::test]
async fn memory_keeps_it() {
    is_kept_in(&Registry::new(MemoryStore::new())).await;
}

#[tokio::test]
async fn sealed_records_keep_it() {
    is_kept_in(&Registry::builder(MemoryStore::new()).seal_with(sealing_key(7)).build()).await;
}

#[tokio::test]
async fn sqlite_keeps_it_in_transactions_too() {
    let file = SqliteFile::new();
    let registry = Registry::new(SqliteStore::open(file.path()).await.expect("the file can be opened"));
    is_kept_in(&registry).await;
    let (server, logs) = (serve(&registry).await, Logs::collect());
    send(&server, "/transaction", "k", FIRST).await;
    assert!(send(&server, "/transaction", "k", RETRY).await.is_replay());
    assert_eq!(told(&logs), ["4bf92f3577b34da6a3ce929d0e0e4736"]);
}

#[tokio::test]
async fn redis_keeps_it() {
    let redis = RedisServer::start(&[]).await;
    is_kept_in(&Registry::new(RedisStore::connect(&redis.url()).await.expect("the server answers"))).await;
}

#[tokio::test]
async fn postgres_keeps_it() {
    let database = PostgresServer::shared().await.database().await;
    let store = PostgresStore::new(database.pool(2).await);
    store.migrate().await.expect("the tables are made");
    is_kept_in(&Registry::new(store)).await;
}

#[tokio::test]
async fn without_a_well_formed_one_a_replay_tells_of_none() {
    let (server, logs) = (serve(&Registry::new(MemoryStore::new())).await, Logs::collect());
    server.post_with_key("/", "none").await;
    assert!(send(&server, "/", "none", RETRY).await.is_replay());
    send(&server, "/", "malformed", "00-planted-trace-01").await;
    assert!(send(&server, "/", "malformed", RETRY).await.is_replay());
    assert_eq!(told(&logs), ["", ""]);
    assert!(!logs.text().lines().any(|line| line.contains("idempotent{") && line.contains("planted")));
}
