//! Connections to PostgreSQL that no longer transfer anything and are never closed: requests are served again soon.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::PostgresStore;
use idempotent_runtime::{Registry, RegistryBuilder, Tx, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::{Answer, Logs, Loss, Mode, Proxy, Runs, Server, answer, eventually, sealing_key};
use sqlx::Postgres;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use tokio::task::JoinSet;

#[idempotent(scope = "stranded-plain")]
async fn plain() -> &'static str {
    "done"
}

#[idempotent(scope = "stranded-in-transaction")]
async fn in_transaction(mut tx: Tx<Postgres>) -> Result<&'static str, String> {
    sqlx::query("SELECT 1").execute(&mut *tx).await.map(|_| "done").map_err(|error| error.to_string())
}

async fn serve(pool: PgPool) -> Server {
    let store = PostgresStore::new(pool);
    store.migrate().await.expect("the tables are made");
    let app = Router::new().route("/plain", post(plain)).route("/in-transaction", post(in_transaction));
    Server::start(app.layer(Registry::new(store).layer())).await
}

/// Sends 40 requests per second, without waiting for their answers, until one has succeeded. Returns the time until
/// then.
async fn until_first_success(server: &Server, path: &str, round: &str) -> Duration {
    let begun = Instant::now();
    let mut sent = JoinSet::new();
    for number in 0.. {
        let request = server.post(path).header("idempotency-key", format!("{round}{number}"));
        sent.spawn(async move { request.send().await.is_ok_and(|answer| answer.status() == StatusCode::OK) });
        let pause = tokio::time::sleep(Duration::from_millis(25));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                Some(answer) = sent.join_next() => if answer.expect("the task runs") { return begun.elapsed() },
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{path} does not come back");
    }
    unreachable!("numbers do not end")
}

async fn use_all_connections(server: &Server, path: &str) {
    let answers = join_all((0..20).map(async |number| server.post_with_key(path, &format!("before{number}")).await));
    assert!(answers.await.iter().all(|answer| answer.status == StatusCode::OK));
}

async fn strand(path: &str) -> Duration {
    let database = PostgresServer::shared().await.database().await;
    let proxy = database.proxy();
    // This pool does not test its free connections: such a test would detect the stranded ones.
    let pool = database.untested_pool_of(4, &proxy).await;
    let server = serve(pool).await;
    use_all_connections(&server, path).await;
    proxy.strand();
    until_first_success(&server, path, "after").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stranded_connections_are_replaced_within_5_seconds() {
    let took = strand("/plain").await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stranded_transactions_are_replaced_within_5_seconds() {
    let took = strand("/in-transaction").await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// The transaction has begun and holds the key. The statement that reads which locks it got is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn line_stranded_in_a_claim_frees_its_key_within_5_seconds() {
    let database = PostgresServer::shared().await.database().await;
    let proxy = database.proxy();
    let server = serve(database.untested_pool_of(4, &proxy).await).await;
    proxy.strand_before("SELECT current_setting('idempotent_runtime.locked')");
    assert_eq!(server.post_with_key("/in-transaction", "k").await.rejection(), "store_unavailable");
    let begun = Instant::now();
    let answer = async || server.post_with_key("/in-transaction", "k").await;
    let answer = eventually(answer, |answer| answer.status == StatusCode::OK).await;
    assert!(!answer.is_replay() && begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// The proxy stops for a while. Requests give up the transactions that they begin meanwhile. These must not delay later
/// requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_begins_delay_no_request_after_an_outage() {
    let database = PostgresServer::shared().await.database().await;
    let proxy = database.proxy();
    let server = serve(database.untested_pool_of(2, &proxy).await).await;
    use_all_connections(&server, "/in-transaction").await;
    proxy.set(Mode::Stops);
    let mut sent = JoinSet::new();
    for number in 0..120 {
        let request = server.post("/in-transaction").header("idempotency-key", format!("during{number}"));
        sent.spawn(request.send());
        // The whole fault lasts three seconds, longer than the default `store_timeout`.
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    proxy.strand();
    proxy.set(Mode::Passes);
    let took = until_first_success(&server, "/in-transaction", "after").await;
    assert!(took < Duration::from_secs(4), "{took:?}");
}

/// Commits its transaction itself. Then the proxy causes the fault that the body names.
#[idempotent(scope = "stranded-after-commit", lease = "10s")]
async fn commits(mut tx: Tx<Postgres>, State(line): State<(Runs, Arc<Proxy>)>, body: String) -> StatusCode {
    let (runs, proxy) = line;
    runs.run().await;
    for sql in ["INSERT INTO effects (key) VALUES ('k')", "COMMIT"] {
        sqlx::raw_sql(sql).execute(&mut *tx).await.expect("executed");
    }
    match body.as_str() {
        "strands" => proxy.strand(),
        "loses an answer" => proxy.lose(Loss::Answer),
        other => panic!("{other}"),
    }
    StatusCode::CREATED
}

/// Sends retries until they are no longer `in_flight`, and returns the last answer. Checks that the handler ran once
/// and had one effect.
async fn retried_after_own_commit(line: &'static str, setting: fn(RegistryBuilder) -> RegistryBuilder) -> Answer {
    let database = PostgresServer::shared().await.database().await;
    let proxy = Arc::new(database.proxy());
    // Behind a pooler, each statement of the store has a COMMIT whose answer can be lost.
    let store = PostgresStore::builder(database.untested_pool_of(4, &proxy).await).pooled().build();
    store.migrate().await.expect("the tables are made");
    let direct = database.pool(1).await;
    sqlx::raw_sql("CREATE TABLE effects (key text NOT NULL)").execute(&direct).await.expect("the table is made");
    let runs = Runs::free();
    let app = Router::new().route("/commits", post(commits)).with_state((runs.clone(), proxy));
    let server = Server::start(app.layer(setting(Registry::builder(store)).build().layer())).await;
    let send = async || answer(server.post("/commits").header("idempotency-key", "k").body(line)).await;
    assert!(send().await.status.is_server_error());
    let in_the_end = |answer: &Answer| answer.status == StatusCode::CONFLICT && answer.rejection() != "in_flight";
    let retried = eventually(send, in_the_end).await;
    let effects: i64 = sqlx::query_scalar("SELECT count(*) FROM effects").fetch_one(&direct).await.expect("counted");
    assert_eq!((runs.started(), effects), (1, 1));
    retried
}

/// The engine cannot use the handler's connection to ask how the transaction has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_commit_before_the_line_strands_is_not_run_again() {
    assert_eq!(retried_after_own_commit("strands", |registry| registry).await.rejection(), "response_not_recorded");
}

/// The record of such a run is sealed as the record of a response is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_commit_under_sealing_is_told_to_its_retries() {
    let retried = retried_after_own_commit("strands", |registry| registry.seal_with(sealing_key(1))).await;
    assert_eq!(retried.rejection(), "response_not_recorded");
}

#[tokio::test]
async fn own_commit_whose_record_has_no_answer_is_told_truly() {
    let logs = Logs::collect();
    let retried = retried_after_own_commit("loses an answer", |registry| registry).await;
    assert_eq!(retried.rejection(), "response_not_recorded");
    let told: Vec<_> = logs.of_level("ERROR").into_iter().filter(|line| line.contains("is not the engine's")).collect();
    assert!(told.len() == 1 && told[0].contains("retries get 409 `response_not_recorded`"), "{told:?}");
}

/// Has an effect, and strands the connection in its first run: the server does not notice that its client no longer
/// uses the connection.
#[idempotent(scope = "stranded-open", lease = "300ms")]
async fn strands(mut tx: Tx<Postgres>, State((runs, proxy)): State<(Runs, Arc<Proxy>)>) -> StatusCode {
    sqlx::raw_sql("INSERT INTO effects (key) VALUES ('k')").execute(&mut *tx).await.expect("executed");
    if runs.run().await == 1 {
        proxy.strand();
    }
    StatusCode::CREATED
}

#[tokio::test]
async fn stranded_transaction_that_stays_open_is_told_truly() {
    let logs = Logs::collect();
    let database = PostgresServer::shared().await.database().await;
    let proxy = Arc::new(database.proxy());
    let store = PostgresStore::new(database.untested_pool_of(4, &proxy).await);
    store.migrate().await.expect("the tables are made");
    let direct = database.pool(1).await;
    sqlx::raw_sql("CREATE TABLE effects (key text NOT NULL)").execute(&direct).await.expect("the table is made");
    let runs = Runs::free();
    let app = Router::new().route("/", post(strands)).with_state((runs.clone(), proxy));
    let registry = Registry::builder(store).store_timeout(Duration::from_millis(500)).build();
    let server = Server::start(app.layer(registry.layer())).await;
    assert_eq!(server.post_with_key("/", "k").await.rejection(), "store_unavailable");
    eventually(async || logs.of_level("WARN").join("\n"), |told| told.contains("its key stays in flight until")).await;
    assert_eq!(server.post_with_key("/", "k").await.rejection(), "in_flight");

    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
        WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    let ended: i64 = sqlx::query_scalar(end).fetch_one(&direct).await.expect("the server answers");
    assert_eq!(ended, 1);
    eventually(async || server.post_with_key("/", "k").await.status, |status| *status == StatusCode::CREATED).await;
    let effects: i64 = sqlx::query_scalar("SELECT count(*) FROM effects").fetch_one(&direct).await.expect("counted");
    assert_eq!((runs.started(), effects), (2, 1));
    let told: Vec<_> = logs.of_level("ERROR").into_iter().filter(|line| line.contains("is not the engine's")).collect();
    assert!(told.is_empty(), "{told:?}");
}

#[idempotent(scope = "mixed-up")]
async fn mixed_up(mut tx: Tx<Postgres>, State(runs): State<Runs>) -> String {
    sqlx::query("SELECT 1").execute(&mut *tx).await.expect("executed");
    format!("run {}", runs.run().await)
}

/// Does what a pooler that the store has not recognised may do: a statement of another client takes the name of the
/// store's statement that looks for a record.
async fn replace_look(connection: &mut PgConnection) -> Result<usize, sqlx::Error> {
    let own = "SELECT name FROM pg_prepared_statements \
        WHERE parameter_types = '{bytea}' AND statement LIKE '%AS acquired%'";
    let own: Vec<String> = sqlx::query_scalar(own).persistent(false).fetch_all(&mut *connection).await?;
    for name in &own {
        let others = format!("DEALLOCATE {name}; PREPARE {name} (bytea) AS SELECT 1 WHERE $1 = ''");
        sqlx::raw_sql(sqlx::AssertSqlSafe(others)).execute(&mut *connection).await?;
    }
    Ok(own.len())
}

#[tokio::test]
async fn statement_of_another_client_hides_no_record() {
    let database = PostgresServer::shared().await.database().await;
    let (is_mixed_up, replaced) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (mixes_up, counts) = (is_mixed_up.clone(), replaced.clone());
    let pool = PgPoolOptions::new().max_connections(1).after_release(move |connection, _| {
        let (mixes_up, counts) = (mixes_up.clone(), counts.clone());
        Box::pin(async move {
            if mixes_up.load(Ordering::SeqCst) {
                counts.fetch_add(replace_look(connection).await?, Ordering::SeqCst);
            }
            Ok(true)
        })
    });
    let store = PostgresStore::new(pool.connect_with(database.options_of("tester")).await.expect("it connects"));
    store.migrate().await.expect("the tables are made");
    let runs = Runs::free();
    let app = Router::new().route("/", post(mixed_up)).with_state(runs.clone()).route("/plain", post(plain));
    let server = Server::start(app.layer(Registry::new(store).layer())).await;
    // The store compares its connections, and detects no pooler.
    assert_eq!(server.post_with_key("/plain", "k").await.text(), "done");
    for is_replay in [false, true] {
        let answer = server.post_with_key("/", "k").await;
        assert_eq!((answer.text(), answer.is_replay()), ("run 1", is_replay));
    }
    is_mixed_up.store(true, Ordering::SeqCst);
    assert!(server.post_with_key("/", "k").await.is_replay());
    eventually(async || replaced.load(Ordering::SeqCst), |&replaced| replaced > 0).await;

    assert_eq!(server.post_with_key("/", "k").await.rejection(), "store_unavailable");
    assert_eq!(runs.started(), 1);
}
