//! Clients can use up connections, files and disk space. A store without them is busy, not unreachable, so
//! `on_store_error = "run"` runs nothing.

use std::fs::File;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use idempotent_runtime::store::{
    AfterCrash, Claim, ClaimRequest, PostgresStore, RedisStore, SqliteStore, Store as _, StoreAdmin, Token,
};
use idempotent_runtime::{Fingerprint, RecordKey, Registry, idempotent};
use idempotent_tests::pgbouncer::PgBouncer;
use idempotent_tests::postgres::{Database, PostgresServer};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Answer, Runs, Server, Tmpfs, alone, eventually, stores};
use rustix::process::{Resource, Rlimit, setrlimit};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[idempotent(scope = "shortages-runs", on_store_error = "run", fingerprint = none)]
async fn runs_unguarded(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

async fn serve(store: impl StoreAdmin, runs: &Runs, limit: Duration) -> Server {
    let registry = Registry::builder(store).store_timeout(limit).build();
    Server::start(Router::new().route("/runs", post(runs_unguarded)).with_state(runs.clone()).layer(registry.layer()))
        .await
}

async fn assert_retries_are_rejected(server: &Server, runs: &Runs) {
    for number in 1..=3 {
        let retry = server.post_with_key("/runs", "k").await;
        assert!(!retry.status.is_success(), "retry {number} of a recorded request: {}", retry.text());
        assert_eq!(retry.rejection(), "store_unavailable");
    }
    assert_eq!(runs.started(), 1);
}

/// Opens connections until the server, or the pooler in front of it, accepts no more.
async fn use_all_places(options: &PgConnectOptions) -> Vec<PgConnection> {
    let mut connections = Vec::new();
    let mut rejected = 0;
    while rejected < 20 {
        match options.connect().await {
            Ok(connection) => {
                connections.push(connection);
                rejected = 0;
            }
            Err(_) => rejected += 1,
        }
    }
    connections
}

async fn end_all_connections(admin: &mut PgConnection) {
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
    sqlx::query(end).execute(admin).await.expect("the server answers");
}

async fn recorded_in(database: &Database, runs: &Runs) -> Server {
    let server = serve(stores::migrated(&database.pool(3).await).await, runs, Duration::from_secs(1)).await;
    assert_eq!(server.post_with_key("/runs", "k").await.text(), "run 1");
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_without_places_runs_no_retry_unguarded() {
    let postgres = PostgresServer::start(&["max_connections=12"]).await;
    let (database, runs) = (postgres.database().await, Runs::free());
    let server = recorded_in(&database, &runs).await;
    let mut admin = postgres.connect("postgres").await;
    end_all_connections(&mut admin).await;
    let _others = use_all_places(&database.options_of("tester")).await;
    assert_retries_are_rejected(&server, &runs).await;
}

async fn through(pooler: &PgBouncer, database: &Database) -> PgConnectOptions {
    let options = database.options_of("tester").socket(pooler.folder());
    eventually(async || options.connect().await, Result::is_ok).await.expect("PgBouncer answers");
    options
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbouncer_without_places_runs_no_retry_unguarded() {
    let postgres = PostgresServer::start(&[]).await;
    let (database, runs) = (postgres.database().await, Runs::free());
    drop(stores::migrated(&database.pool(3).await).await);
    let pooler = PgBouncer::with_settings(&postgres, 5, "max_client_conn = 15");
    let options = through(&pooler, &database).await;
    let pool = PgPoolOptions::new().max_lifetime(Duration::from_millis(1)).connect_lazy_with(options.clone());
    let server = serve(PostgresStore::new(pool), &runs, Duration::from_secs(1)).await;
    assert_eq!(server.post_with_key("/runs", "k").await.text(), "run 1");
    let _others = use_all_places(&options).await;
    // This request may close connections that are too old, and so make room for other clients.
    let _ = server.post_with_key("/runs", "k").await;
    let _more = use_all_places(&options).await;
    assert_retries_are_rejected(&server, &runs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbouncer_whose_queue_is_too_long_runs_no_retry_unguarded() {
    let postgres = PostgresServer::start(&[]).await;
    let (database, runs) = (postgres.database().await, Runs::free());
    drop(stores::migrated(&database.pool(3).await).await);
    let pooler = PgBouncer::with_settings(&postgres, 2, "query_wait_timeout = 1");
    let options = through(&pooler, &database).await;
    let pool = PgPoolOptions::new().max_connections(3).connect_lazy_with(options.clone());
    let server = serve(PostgresStore::new(pool), &runs, Duration::from_secs(4)).await;
    assert_eq!(server.post_with_key("/runs", "k").await.text(), "run 1");
    let mut others = Vec::new();
    for _ in 0..2 {
        let mut other = options.connect().await.expect("PgBouncer answers");
        sqlx::raw_sql("BEGIN; SELECT 1").execute(&mut other).await.expect("it begins");
        others.push(other);
    }
    assert_retries_are_rejected(&server, &runs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_without_places_runs_no_retry_unguarded() {
    let redis = RedisServer::start(&[]).await;
    let runs = Runs::free();
    let store = RedisStore::connect(&redis.url()).await.expect("the store opens");
    let server = serve(store, &runs, Duration::from_secs(1)).await;
    assert_eq!(server.post_with_key("/runs", "k").await.text(), "run 1");
    let mut admin = redis.connection().await;
    let mut tell = async |words: &str| {
        let mut words = words.split(' ');
        let mut command = redis::cmd(words.next().expect("a command"));
        command.arg(words.collect::<Vec<_>>());
        command.query_async::<redis::Value>(&mut admin).await.expect("the server answers")
    };
    tell("CONFIG SET maxclients 1").await;
    tell("CLIENT KILL TYPE pubsub").await;
    tell("CLIENT KILL TYPE normal SKIPME yes").await;
    assert_retries_are_rejected(&server, &runs).await;
    tell("CONFIG SET maxclients 1000").await;
    let replayed = eventually(async || server.post_with_key("/runs", "k").await, Answer::is_replay).await;
    assert_eq!(replayed.text(), "run 1");
}

/// A request with the key `k`, after which the connection stays open.
const RETRY: &[u8] = b"POST /runs HTTP/1.1\r\nhost: test\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n";

/// Reads the next answer on the connection.
async fn answer(connection: &mut TcpStream) -> String {
    let mut answer = String::new();
    loop {
        let mut bytes = [0; 4096];
        let length = connection.read(&mut bytes).await.expect("the server answers");
        assert!(length > 0, "the server has closed the connection: {answer}");
        answer.push_str(&String::from_utf8_lossy(&bytes[..length]));
        let Some((head, body)) = answer.split_once("\r\n\r\n") else { continue };
        let told = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if told.is_some_and(|told| told.parse() == Ok(body.len())) {
            return answer;
        }
    }
}

/// Opens files until this process can open no more.
fn use_all_files() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

#[test]
fn process_without_files_runs_no_retry_unguarded() {
    if !alone(process_without_files_runs_no_retry_unguarded) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let (postgres, redis, file) =
            (PostgresServer::start(&[]).await, RedisServer::start(&[]).await, SqliteFile::new());
        let (database, limit) = (postgres.database().await, Duration::from_secs(1));
        let runs = [Runs::free(), Runs::free(), Runs::free()];
        let in_redis = RedisStore::connect(&redis.url()).await.expect("the store opens");
        let in_sqlite = SqliteStore::open(file.path()).await.expect("the store opens");
        let servers = [
            recorded_in(&database, &runs[0]).await,
            serve(in_redis, &runs[1], limit).await,
            serve(in_sqlite, &runs[2], limit).await,
        ];
        let mut connections = Vec::new();
        for server in &servers {
            let mut connection = server.connect_and_send(RETRY).await;
            assert!(answer(&mut connection).await.ends_with("run 1"));
            connections.push(connection);
        }
        let (mut admin, mut redis_admin) = (postgres.connect("postgres").await, redis.connection().await);
        setrlimit(Resource::Nofile, Rlimit { current: Some(200), maximum: Some(200) }).expect("it is lowered");
        let mut files = use_all_files();
        end_all_connections(&mut admin).await;
        let kill = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes").to_owned();
        kill.query_async::<redis::Value>(&mut redis_admin).await.expect("the server answers");
        for (connection, runs) in connections.iter_mut().zip(&runs) {
            for _ in 0..3 {
                files.extend(use_all_files());
                connection.write_all(RETRY).await.expect("the server reads");
                let retry = answer(connection).await;
                assert!(retry.contains("idempotent-replayed: true") || retry.contains("store_unavailable"), "{retry}");
            }
            assert_eq!(runs.started(), 1);
        }
        drop(files);
        admin.close().await.expect("it closes");
    });
}

/// A takeover ends the earlier lease in the file of leases, which is on the full disk too.
#[tokio::test]
async fn takeover_in_sqlite_on_a_full_disk_is_busy() {
    let disk = Tmpfs::mount(4);
    let store = SqliteStore::open(disk.path().join("idempotency.db")).await.expect("the store opens");
    let request = |lease| {
        let request = ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([7; 32])).with_lease(lease);
        request.with_after_crash(AfterCrash::Rerun)
    };
    let keys: Vec<_> = (0..100).map(|number| RecordKey::new("shortages", None, &number.to_string())).collect();
    for key in &keys {
        assert_eq!(store.claim(key, request(Duration::ZERO)).await.expect("it claims"), Claim::Acquired { attempt: 1 });
    }
    let _filling = disk.fill();
    let mut errors = Vec::new();
    for key in &keys {
        errors.extend(store.claim(key, request(Duration::from_secs(30))).await.err());
    }
    assert!(!errors.is_empty(), "the disk is full");
    for error in errors {
        assert!(!error.is_unreachable(), "{error:?}");
    }
}
