//! Tests of a `Tx` that need PostgreSQL: several processes, few connections, and connections that break.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use idempotent_runtime::store::PostgresStore;
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::postgres::{Database, PostgresServer};
use idempotent_tests::{Answer, Logs, Loss, Mode, PATIENCE, Runs, Server, answer, eventually};
use sqlx::{PgPool, Postgres};

async fn insert(tx: &mut Tx<Postgres>, note: &str) {
    sqlx::query("INSERT INTO charges (note) VALUES ($1)").bind(note).execute(&mut **tx).await.expect("inserted");
}

#[idempotent(scope = "postgres-charges")]
async fn create_charge(mut tx: Tx<Postgres>, State(runs): State<Runs>, body: String) -> (StatusCode, String) {
    insert(&mut tx, &body).await;
    (StatusCode::CREATED, format!("run {}", runs.run().await))
}

#[idempotent(scope = "postgres-waits", in_flight = wait("20s"))]
async fn waits(mut tx: Tx<Postgres>, State(runs): State<Runs>, body: String) -> String {
    insert(&mut tx, &body).await;
    format!("run {}", runs.run().await)
}

/// Ignores the error of a statement, and answers as if all had succeeded.
#[idempotent(scope = "swallows")]
async fn swallows_an_error(mut tx: Tx<Postgres>, State(runs): State<Runs>, body: String) -> StatusCode {
    insert(&mut tx, &body).await;
    runs.run().await;
    let failed = sqlx::query("SELECT 1 / 0").execute(&mut *tx).await;
    assert!(failed.is_err());
    StatusCode::CREATED
}

#[idempotent(scope = "begins")]
async fn begins(_tx: Tx<Postgres>) -> StatusCode {
    StatusCode::OK
}

#[idempotent(scope = "plain")]
async fn plain(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

const TIMEOUT: Duration = Duration::from_millis(300);

async fn create_tables(pool: &PgPool) {
    let schema = "CREATE TABLE charges (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL)";
    sqlx::raw_sql(schema).execute(pool).await.expect("the table is made");
    PostgresStore::new(pool.clone()).migrate().await.expect("the tables are made");
}

/// Starts a server with its own store and registry over the pool, as one process has them.
async fn process(pool: PgPool, runs: &Runs) -> (Server, Registry) {
    // Longer than a busy machine needs for two hundred requests over two connections.
    let registry = Registry::builder(PostgresStore::new(pool)).store_timeout(Duration::from_secs(30)).build();
    let app = Router::new()
        .route("/charges", post(create_charge))
        .route("/waits", post(waits))
        .route("/swallows", post(swallows_an_error))
        .with_state(runs.clone())
        .layer(registry.layer());
    (Server::start(app).await, registry)
}

async fn database() -> (Database, PgPool) {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool(4).await;
    create_tables(&pool).await;
    (database, pool)
}

async fn send(server: &Server, path: &str, key: &str, body: &'static str) -> Answer {
    answer(server.post(path).header("idempotency-key", key).body(body)).await
}

async fn rows(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar("SELECT note FROM charges ORDER BY id").fetch_all(pool).await.expect("the table is read")
}

#[tokio::test]
async fn second_process_rejects_tells_requests_apart_and_replays() {
    let (database, pool) = database().await;
    let runs = Runs::held();
    let (first, _) = process(pool.clone(), &runs).await;
    let (second, _) = process(database.pool(2).await, &runs).await;
    let (answered, ()) = tokio::join!(send(&first, "/charges", "k", "tea"), async {
        runs.until_started(1).await;
        assert_eq!(send(&second, "/charges", "k", "tea").await.rejection(), "in_flight");
        assert_eq!(send(&second, "/charges", "k", "ham").await.rejection(), "key_reused", "422 beats 409");
        let other = second.post("/charges").header("idempotency-key", "k").header("cookie", "session=2").body("tea");
        assert_eq!(answer(other).await.rejection(), "other_credentials");
        runs.let_finish(1);
    });
    assert_eq!(answered.text(), "run 1");
    let retry = send(&second, "/charges", "k", "tea").await;
    assert_eq!((retry.text(), retry.is_replay()), ("run 1", true));
    assert_eq!(rows(&pool).await, ["tea"]);
}

/// Regression test: a process that asked whether its COMMIT had succeeded held the key for a moment. A retry in another
/// process was then told that its key had been used for a different request.
#[tokio::test]
async fn key_held_without_a_request_is_in_flight_not_reused() {
    let (database, pool) = database().await;
    let runs = Runs::held();
    let (first, _) = process(pool.clone(), &runs).await;
    let (second, _) = process(database.pool(2).await, &runs).await;
    let (_, locks) = tokio::join!(send(&first, "/swallows", "k", "tea"), async {
        runs.until_started(1).await;
        let locks = "SELECT classid::bigint << 32 | objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 \
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        let locks: Vec<i64> = sqlx::query_scalar(locks).fetch_all(&pool).await.expect("the handler's claim is a lock");
        runs.let_finish(1);
        locks
    });
    let mut held = pool.begin().await.expect("the pool has another connection");
    let lock_all = sqlx::query("SELECT pg_advisory_xact_lock(number) FROM unnest($1) AS locks (number)").bind(locks);
    lock_all.execute(&mut *held).await.expect("its claim has ended");
    assert_eq!(send(&second, "/swallows", "k", "tea").await.rejection(), "in_flight");
    held.rollback().await.expect("rolled back");
    runs.let_finish(1);
    assert_eq!(send(&second, "/swallows", "k", "tea").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(runs.started(), 2, "the key was free");
}

/// Returns whether two statements run in one transaction, although none was begun for them.
async fn is_left_in_a_transaction(pool: &PgPool) -> bool {
    let of_statement = || async {
        let id = sqlx::query_scalar::<_, String>("SELECT pg_current_xact_id()::text").fetch_one(pool).await;
        id.expect("the database answers")
    };
    of_statement().await == of_statement().await
}

/// Regression test: a process was stopped while it began a transaction. `store_timeout` dropped the future, and sqlx
/// gave the connection back to the pool with the transaction open. The next claim was granted in that transaction, and
/// rolled back with it while its handler ran.
#[tokio::test]
async fn a_transaction_that_begins_too_late_is_rolled_back() {
    let (database, _) = database().await;
    let proxy = database.proxy();
    let pool = database.untested_pool_over(&proxy).await;
    let registry = Registry::builder(PostgresStore::new(pool.clone())).store_timeout(TIMEOUT).build();
    let app = Router::new().route("/begins", post(begins)).layer(registry.layer());
    let server = Server::start(app).await;
    assert_eq!(answer(server.post("/begins")).await.status, StatusCode::OK, "a connection is there");
    eventually(async || pool.num_idle(), |&idle| idle == 1).await;
    proxy.set(Mode::Stops);
    assert_eq!(answer(server.post("/begins")).await.rejection(), "store_unavailable");
    proxy.set(Mode::Passes);
    assert!(!is_left_in_a_transaction(&pool).await);
}

#[tokio::test]
async fn transaction_left_open_swallows_no_claims_and_records() {
    let (database, _) = database().await;
    let proxy = database.proxy();
    let pool = database.untested_pool_over(&proxy).await;
    // Drops a `begin` that is not ready, as the end of an interrupted request can. If sqlx fixes this, this wait
    // panics, and the test can go.
    eventually(
        async || {
            assert!(pool.begin().now_or_never().is_none());
            is_left_in_a_transaction(&pool).await
        },
        |&is_left| is_left,
    )
    .await;
    let runs = Runs::free();
    let app = |pool| {
        let registry = Registry::new(PostgresStore::new(pool));
        Router::new().route("/plain", post(plain)).with_state(runs.clone()).layer(registry.layer())
    };
    let (first, second) = (Server::start(app(pool)).await, Server::start(app(database.pool(1).await)).await);
    assert_eq!(send(&first, "/plain", "k", "tea").await.text(), "run 1");
    let retry = send(&second, "/plain", "k", "tea").await;
    assert_eq!((retry.text(), retry.is_replay()), ("run 1", true));
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn a_waiter_in_another_process_gets_the_response() {
    let (database, pool) = database().await;
    let runs = Runs::held();
    let (first, _) = process(pool.clone(), &runs).await;
    let (second, _) = process(database.pool(2).await, &runs).await;
    let (first, second, ()) = tokio::join!(
        send(&first, "/waits", "k", "tea"),
        async {
            runs.until_started(1).await;
            send(&second, "/waits", "k", "tea").await
        },
        async {
            runs.until_started(1).await;
            runs.let_finish(2);
        }
    );
    assert_eq!((first.text(), second.text()), ("run 1", "run 1"));
    assert_eq!((runs.started(), rows(&pool).await.len()), (1, 1));
}

#[tokio::test]
async fn two_hundred_duplicates_over_a_pool_of_two_do_not_deadlock() {
    let (database, pool) = database().await;
    for path in ["/charges", "/waits"] {
        let runs = Runs::held();
        // There are two processes, because a duplicate in the process of the first request is rejected without a
        // connection.
        let (first, _) = process(database.pool(2).await, &runs).await;
        let (second, _) = process(database.pool(2).await, &runs).await;
        let servers = [&first, &second];
        let (answers, ()) =
            tokio::join!(join_all((0..200).map(|number| send(servers[number % 2], path, path, "tea"))), async {
                runs.until_started(1).await;
                runs.let_finish(200);
            });
        assert_eq!(runs.started(), 1);
        let (done, rejected): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status.is_success());
        assert!(done.iter().all(|answer| answer.text() == "run 1"));
        assert_eq!(done.iter().filter(|answer| !answer.is_replay()).count(), 1);
        assert!(rejected.iter().all(|answer| answer.rejection() == "in_flight"), "{rejected:?}");
        assert!(path == "/charges" || rejected.is_empty(), "every waiter gets the response");
    }
    assert_eq!(rows(&pool).await, ["tea"; 2]);
}

/// A connection is free when the replays arrive, and another handler may take it before them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replays_do_not_wait_for_connections_of_handlers() {
    let (database, _) = database().await;
    let runs = Runs::held();
    let (server, _) = process(database.pool(2).await, &runs).await;
    let (recorded, ()) = tokio::join!(send(&server, "/waits", "recorded", "tea"), async {
        runs.until_started(1).await;
        runs.let_finish(1);
    });
    assert_eq!(recorded.text(), "run 1");
    let first = send(&server, "/waits", "first", "tea");
    let others = async {
        runs.until_started(2).await;
        let second = send(&server, "/waits", "second", "tea");
        let replays = async {
            let replays = join_all((0..50).map(|_| send(&server, "/waits", "recorded", "tea"))).await;
            // Only now do the handlers end.
            runs.until_started(3).await;
            runs.let_finish(2);
            replays
        };
        tokio::join!(second, replays)
    };
    let (first, (second, replays)) = tokio::join!(first, others);
    assert!(replays.iter().all(|replay| replay.is_replay() && replay.text() == "run 1"), "{replays:?}");
    assert!([first, second].iter().all(|answer| answer.status.is_success()));
}

#[tokio::test]
async fn lost_answer_to_commit_is_told_by_the_record() {
    for loss in [Loss::Answer, Loss::Request] {
        let (database, pool) = database().await;
        let proxy = database.proxy();
        let runs = Runs::free();
        let (server, _) = process(database.pool_over(&proxy).await, &runs).await;
        proxy.lose(loss);
        let first = send(&server, "/charges", "k", "tea").await;
        assert!(proxy.has_lost());
        let retry = send(&server, "/charges", "k", "tea").await;
        match loss {
            Loss::Answer => {
                assert_eq!((first.text(), first.is_replay()), ("run 1", false), "it was committed");
                assert_eq!((retry.text(), retry.is_replay()), ("run 1", true));
            }
            Loss::Request => {
                assert_eq!(first.rejection(), "store_unavailable", "it was rolled back");
                assert_eq!((retry.text(), retry.is_replay()), ("run 2", false));
            }
        }
        assert_eq!(rows(&pool).await, ["tea"], "{loss:?}");
    }
}

#[tokio::test]
async fn connection_dead_under_the_handler_keeps_nothing() {
    let (_database, pool) = database().await;
    let runs = Runs::held();
    let (server, _) = process(pool.clone(), &runs).await;
    let (first, ()) = tokio::join!(send(&server, "/charges", "k", "tea"), async {
        runs.until_started(1).await;
        let idle = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND state = 'idle in transaction'";
        let ended: Vec<bool> = sqlx::query_scalar(idle).fetch_all(&pool).await.expect("the server answers");
        assert_eq!(ended, [true]);
        runs.let_finish(2);
    });
    assert_eq!(first.rejection(), "store_unavailable");
    assert_eq!(rows(&pool).await, [""; 0]);
    let retry = send(&server, "/charges", "k", "tea").await;
    assert_eq!((retry.text(), retry.is_replay()), ("run 2", false));
    assert_eq!(rows(&pool).await, ["tea"]);
}

#[tokio::test]
async fn an_error_that_the_handler_swallowed_is_never_told_as_success() {
    let (_database, pool) = database().await;
    let (server, _) = process(pool.clone(), &Runs::free()).await;
    let logs = Logs::collect();
    let without_key = answer(server.post("/swallows").body("tea")).await;
    let with_key = send(&server, "/swallows", "k", "tea").await;
    for rejected in [without_key, with_key] {
        let code = rejected.rejection();
        assert_eq!((rejected.status, code.as_str()), (StatusCode::INTERNAL_SERVER_ERROR, "transaction_failed"));
    }
    let errors = logs.of_level("ERROR");
    assert_eq!(errors.iter().filter(|line| line.contains("in a savepoint")).count(), 2, "{errors:?}");
    assert_eq!(rows(&pool).await, [""; 0]);
}

#[tokio::test]
async fn under_repeatable_read_too_nothing_runs_twice() {
    let (database, pool) = database().await;
    let runs = Runs::free();
    let (first, _) = process(database.pool_of_isolation("repeatable read").await, &runs).await;
    let (second, _) = process(database.pool_of_isolation("serializable").await, &runs).await;
    for key in ["k1", "k2", "k3", "k4", "k5"] {
        let servers = [&first, &second];
        join_all((0..40).map(|number| send(servers[number % 2], "/charges", key, "tea"))).await;
        let settled = eventually(
            async || send(&first, "/charges", key, "tea").await,
            |answer| answer.status == StatusCode::CREATED,
        );
        assert!(settled.await.is_replay());
    }
    assert_eq!(rows(&pool).await, ["tea"; 5]);
}

#[tokio::test]
async fn a_drain_waits_for_a_handler_in_a_transaction() {
    let (_database, pool) = database().await;
    let runs = Runs::held();
    let (server, registry) = process(pool.clone(), &runs).await;
    let request = b"POST /charges HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: k\r\ncontent-length: 3\r\n\r\ntea";
    drop(server.connect_and_send(request).await);
    runs.until_started(1).await;
    assert_eq!(registry.drain(std::time::Duration::from_millis(50)).await, 1);
    runs.let_finish(1);
    assert_eq!(registry.drain(PATIENCE).await, 0);
    assert_eq!(rows(&pool).await, ["tea"]);
}
