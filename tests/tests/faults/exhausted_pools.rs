//! Five hundred clients share few connections to the store: every request is answered, and no key is executed twice.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::{PostgresStore, RedisStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Idempotency, Registry, Tx, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Answer, Executions, Mode, PATIENCE, Proxy, Runs, Server, answer};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{Postgres, Sqlite};

#[idempotent(scope = "plain")]
async fn plain(State(executions): State<Executions>, idempotency: Idempotency) -> String {
    format!("execution {}", executions.count(idempotency.key().unwrap_or_default()))
}

#[idempotent(scope = "waits", in_flight = wait("60s"))]
async fn waits(State(executions): State<Executions>, idempotency: Idempotency) -> String {
    format!("execution {}", executions.count(idempotency.key().unwrap_or_default()))
}

#[idempotent(scope = "in-postgres")]
async fn in_postgres(mut tx: Tx<Postgres>, idempotency: Idempotency) -> Result<String, String> {
    let insert = sqlx::query("INSERT INTO effects (key) VALUES ($1)").bind(idempotency.key());
    insert.execute(&mut *tx).await.map(|_| "done".to_owned()).map_err(|error| error.to_string())
}

#[idempotent(scope = "in-sqlite")]
async fn in_sqlite(mut tx: Tx<Sqlite>, idempotency: Idempotency) -> Result<String, String> {
    let insert = sqlx::query("INSERT INTO effects (key) VALUES (?)").bind(idempotency.key().map(str::to_owned));
    insert.execute(&mut *tx).await.map(|_| "done".to_owned()).map_err(|error| error.to_string())
}

#[idempotent(scope = "holds")]
async fn holds(_tx: Tx<Postgres>, State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

#[idempotent(scope = "flooded")]
async fn flooded() -> &'static str {
    "one of a flood"
}

#[idempotent(scope = "runs-unguarded", on_store_error = "run")]
async fn runs_unguarded(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

const CLIENTS: usize = 500;

struct Service {
    server: Server,
    executions: Executions,
    /// HTTP/2 connections, so that 500 clients need few file descriptors.
    connections: Vec<reqwest::Client>,
}

impl Service {
    async fn start(store: impl StoreAdmin) -> Self {
        let executions = Executions::default();
        let app = Router::new()
            .route("/plain", post(plain))
            .route("/waits", post(waits))
            .route("/in-postgres", post(in_postgres))
            .route("/in-sqlite", post(in_sqlite))
            .with_state(executions.clone())
            .layer(Registry::new(store).layer());
        let connection = || reqwest::Client::builder().http2_prior_knowledge().retry(reqwest::retry::never()).build();
        let connections = (0..5).map(|_| connection().expect("a client without TLS")).collect();
        Self { server: Server::start(app).await, executions, connections }
    }

    /// Sends the requests of all clients at once. Returns the answers in the order of the clients.
    async fn post(&self, path: &str, key: impl Fn(usize) -> String) -> Vec<Answer> {
        self.post_of(&(0..CLIENTS).collect::<Vec<_>>(), path, key).await
    }

    /// Sends the requests of these clients at once. Returns the answers in the order of the clients.
    async fn post_of(&self, clients: &[usize], path: &str, key: impl Fn(usize) -> String) -> Vec<Answer> {
        let post = async |client: usize| {
            let connection = &self.connections[client % self.connections.len()];
            let request = connection.post(format!("http://{}{path}", self.server.address()));
            answer(request.header("idempotency-key", key(client))).await
        };
        let all = tokio::time::timeout(6 * PATIENCE, join_all(clients.iter().copied().map(post)));
        all.await.expect("every client is answered")
    }

    /// Sends the requests of all clients at once, and repeats the rejected ones until none is rejected.
    async fn post_until_done(&self, path: &str) {
        let mut waiting: Vec<usize> = (0..CLIENTS).collect();
        for _ in 0..30 {
            let answers = self.post_of(&waiting, path, |client| format!("{path}{client}")).await;
            assert_rejected_or_done(&answers);
            let rejected = answers.iter().map(|answer| answer.status != StatusCode::OK);
            waiting =
                waiting.iter().zip(rejected).filter_map(|(client, rejected)| rejected.then_some(*client)).collect();
            if waiting.is_empty() {
                return;
            }
        }
        panic!("some are rejected for ever");
    }

    async fn assert_different_and_equal_keys_run_once(&self) {
        self.post_until_done("/plain").await;
        assert_eq!((self.executions.total(), self.executions.repeated()), (CLIENTS, Vec::new()));
        for (path, rejected) in [("/plain", true), ("/waits", false)] {
            let answers = self.post(path, |_| format!("one-key-of-{path}")).await;
            assert_rejected_or_done(&answers);
            assert!(rejected || answers.iter().any(Answer::is_replay), "those who wait get the response");
        }
        assert_eq!((self.executions.total(), self.executions.repeated()), (CLIENTS + 2, Vec::new()));
    }
}

/// Checks that each answer is a response or a rejection with `Retry-After`. The default `store_timeout` ends every wait
/// for a connection.
fn assert_rejected_or_done(answers: &[Answer]) {
    for answer in answers.iter().filter(|answer| answer.status != StatusCode::OK) {
        assert!(["store_unavailable", "in_flight"].contains(&answer.rejection().as_str()), "{answer:?}");
        assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    }
}

async fn pool_of_two() -> PgPool {
    let url = PostgresServer::shared().await.database().await.url();
    let pool = PgPoolOptions::new().max_connections(2).acquire_timeout(Duration::from_secs(1)).connect(&url).await;
    pool.expect("the server answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_of_two_connections_answers_500_clients() {
    let store = PostgresStore::new(pool_of_two().await);
    store.migrate().await.expect("the tables are made");
    Service::start(store).await.assert_different_and_equal_keys_run_once().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_of_two_connections_ends_500_transactions() {
    let pool = pool_of_two().await;
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("the tables are made");
    sqlx::query("CREATE TABLE effects (key text NOT NULL)").execute(&pool).await.expect("the table is made");
    let service = Service::start(store).await;
    service.post_until_done("/in-postgres").await;
    let effects: (i64, i64) =
        sqlx::query_as("SELECT count(*), count(DISTINCT key) FROM effects").fetch_one(&pool).await.expect("it answers");
    assert_eq!(effects, (500, 500));
}

/// Regression test: the claims of rejected requests still waited in the pool's queue, and the next client waited for
/// each of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_claims_of_a_tx_begin_no_transaction() {
    let postgres = PostgresServer::start(&["log_statement=all"]).await;
    let pool = postgres.database().await.pool(1).await;
    let store = PostgresStore::new(pool);
    store.migrate().await.expect("the tables are made");
    let runs = Runs::held();
    let registry = Registry::builder(store).store_timeout(Duration::from_millis(500)).build();
    let app = Router::new().route("/holds", post(holds)).with_state(runs.clone()).layer(registry.layer());
    let server = Server::start(app).await;
    let send = async |key: String| answer(server.post("/holds").header("idempotency-key", key)).await;
    let (holder, ()) = tokio::join!(send("holder".to_owned()), async {
        runs.until_started(1).await;
        let without_key = answer(server.post("/holds")).await;
        let rejected = join_all((0..100).map(|client| send(format!("k{client}")))).await;
        for answer in rejected.iter().chain([&without_key]) {
            assert_eq!(answer.rejection(), "store_unavailable");
        }
        runs.let_finish(2);
    });
    assert_eq!(holder.text(), "run 1");
    assert_eq!(send("k0".to_owned()).await.text(), "run 2", "the retry of a rejected request");
    // The pool is fair: every waiting call has had its turn before the retry.
    let log = std::fs::read_to_string(postgres.folder().join("log")).expect("the server writes a log");
    assert_eq!(log.matches("set_config('idempotent_runtime.transaction'").count(), 2);
}

/// Starts a server whose store has one connection, and records a response for the key `another`. From then on, each
/// answer of the store is delayed.
async fn recorded_over_a_slow_connection(runs: &Runs, delay: Duration) -> (Server, Proxy) {
    let database = PostgresServer::shared().await.database().await;
    PostgresStore::new(database.pool(1).await).migrate().await.expect("the tables are made");
    let proxy = database.proxy();
    let store = PostgresStore::new(database.untested_pool_of(1, &proxy).await);
    let registry = Registry::builder(store).store_timeout(Duration::from_secs(1)).build();
    let app = Router::new().route("/flooded", post(flooded)).route("/runs-unguarded", post(runs_unguarded));
    let server = Server::start(app.with_state(runs.clone()).layer(registry.layer())).await;
    assert_eq!(server.post_with_key("/runs-unguarded", "another").await.text(), "run 1");
    proxy.set(Mode::Delays(delay));
    (server, proxy)
}

/// Calls are rejected because too many wait for the store. The store still answers, so it is not unreachable, and
/// `on_store_error = "run"` does not apply.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_one_client_runs_no_retry_of_another_one() {
    let runs = Runs::free();
    let (server, _proxy) = recorded_over_a_slow_connection(&runs, Duration::from_millis(10)).await;
    let flood = join_all((0..CLIENTS).map(|number| {
        let request = server.post("/flooded").header("idempotency-key", format!("flood-{number}"));
        async move { answer(request).await }
    }));
    let retries = join_all((0..20).map(|_| server.post_with_key("/runs-unguarded", "another")));
    let (flood, retries) = tokio::join!(flood, retries);
    assert!(flood.iter().any(|answer| answer.status == StatusCode::SERVICE_UNAVAILABLE), "the line was too long");
    assert!(retries.iter().all(|answer| answer.is_replay() || answer.rejection() == "store_unavailable"));
    assert_eq!(runs.started(), 1);
}

/// Calls wait behind others, so their answers come too late, while the store answers the earlier calls in time. The
/// store is not unreachable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_sent_too_late_behind_others_are_not_run() {
    let runs = Runs::free();
    let (server, _proxy) = recorded_over_a_slow_connection(&runs, Duration::from_millis(150)).await;
    let retries = join_all((0..10).map(|_| server.post_with_key("/runs-unguarded", "another"))).await;
    assert!(retries.iter().any(Answer::is_replay), "the store answers");
    assert!(retries.iter().any(|answer| !answer.is_replay()), "not in time for all of them");
    for answer in retries.iter().filter(|answer| !answer.is_replay()) {
        assert_eq!(answer.rejection(), "store_unavailable");
    }
    assert_eq!(runs.started(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_of_four_readers_answers_500_clients() {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    Service::start(store).await.assert_different_and_equal_keys_run_once().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_of_one_write_lock_ends_500_transactions() {
    let file = SqliteFile::new();
    file.execute("CREATE TABLE effects (key text NOT NULL)").await;
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    let service = Service::start(store).await;
    service.post_until_done("/in-sqlite").await;
    assert_eq!(file.number("SELECT count(*) FROM effects").await, 500);
    assert_eq!(file.number("SELECT count(DISTINCT key) FROM effects").await, 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_of_one_connection_answers_500_clients() {
    let redis = RedisServer::start(&[]).await;
    let store = RedisStore::connect(&redis.url()).await.expect("the store opens");
    Service::start(store).await.assert_different_and_equal_keys_run_once().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_connections_that_wait_for_replicas_answer_500_clients() {
    let master = RedisServer::start(&["--repl-diskless-sync-delay 0"]).await;
    let _replica = RedisServer::start(&[&format!("--replicaof {}", master.address().replace(':', " "))]).await;
    idempotent_tests::eventually(async || master.command::<usize>("WAIT 1 100").await, |&replicas| replicas == 1).await;
    let store = RedisStore::builder(&master.url()).wait_replicas(1, Duration::from_millis(500)).open().await;
    Service::start(store.expect("the store opens")).await.assert_different_and_equal_keys_run_once().await;
}
