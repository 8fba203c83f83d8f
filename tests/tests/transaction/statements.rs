//! The engine observes the statements of a handler with a `Tx`: it sees whether a conflict aborted them, and rejects
//! statements after the end of the transaction.

use std::future::Future;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::FutureExt as _;
use idempotent_runtime::store::{PostgresStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::postgres::{Database, PostgresServer};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::stores::migrated;
use idempotent_tests::{Answer, Logs, Runs, Server, answer, eventually};
use sqlx::postgres::{PgAdvisoryLock, PgConnection, PgListener};
use sqlx::sqlite::SqliteConnection;
use sqlx::{Acquire, AssertSqlSafe, Connection as _, Executor as _, PgPool, Postgres, SqlSafeStr as _, Sqlite};

use crate::bench::Bench;

/// Takes the connection itself, as functions of many applications do.
async fn on_postgres(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    connection.execute(AssertSqlSafe(sql.to_owned())).await.map(drop)
}

async fn on_sqlite(connection: &mut SqliteConnection, sql: &str) -> Result<(), sqlx::Error> {
    connection.execute(AssertSqlSafe(sql.to_owned())).await.map(drop)
}

/// Defines a handler that runs the steps of its body in order. It answers with the status of the step `answer`, or with
/// that of the step `failed` if a statement has failed before.
macro_rules! handler_of {
    ($name:ident, $database:ty, $helper:ident, $scope:literal $(, $isolation:literal)?) => {
        #[idempotent(scope = $scope $(, isolation = $isolation)?)]
        async fn $name(mut tx: Tx<$database>, State(runs): State<Runs>, body: String) -> (StatusCode, String) {
            let (mut status, mut errors) = (StatusCode::CREATED, String::new());
            for step in body.split('|') {
                let (step, rest) = step.split_once(' ').unwrap_or((step, ""));
                let sql = AssertSqlSafe(rest.to_owned());
                let done = match step {
                    "sql" => sqlx::query(sql).execute(&mut *tx).await.map(drop),
                    "raw" => sqlx::raw_sql(sql).execute(tx.as_mut()).await.map(drop),
                    "one" => (&mut *tx).fetch_optional(sql).await.map(drop),
                    "prepare" => (&mut *tx).prepare(sql.into_sql_str()).await.map(drop),
                    "helper" => $helper(&mut tx, rest).await,
                    "nested" => async {
                        let mut inner = tx.begin().await?;
                        $helper(&mut inner, rest).await?;
                        inner.commit().await
                    }
                    .await,
                    "acquired" => async { $helper(Acquire::acquire(&mut *tx).await?, rest).await }.await,
                    "acquired-nested" => async {
                        let mut inner = Acquire::begin(&mut *tx).await?;
                        $helper(&mut inner, rest).await?;
                        inner.commit().await
                    }
                    .await,
                    // A `begin` that is ready at once only makes a savepoint. The loop ends with one that is dropped
                    // while it waits.
                    "begin-dropped" => {
                        while matches!(tx.begin().now_or_never(), Some(Ok(_))) {}
                        Ok(())
                    }
                    "meet" => {
                        runs.run().await;
                        Ok(())
                    }
                    "answer" => {
                        status = rest.parse::<u16>().unwrap().try_into().unwrap();
                        Ok(())
                    }
                    "failed" if errors.is_empty() => Ok(()),
                    "failed" => return (rest.parse::<u16>().unwrap().try_into().unwrap(), errors),
                    _ => panic!("no step: {step}"),
                };
                if let Err(error) = done {
                    errors.push_str(&error.to_string());
                    errors.push('\n');
                }
            }
            (status, errors)
        }
    };
}

handler_of!(in_postgres, Postgres, on_postgres, "statements-postgres");
handler_of!(serializable, Postgres, on_postgres, "statements-serializable", "serializable");
handler_of!(in_sqlite, Sqlite, on_sqlite, "statements-sqlite");

async fn bench() -> Bench {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool(4).await;
    bench_over(database, pool).await
}

async fn bench_over(database: Database, pool: PgPool) -> Bench {
    let store = migrated(&pool).await;
    let schema =
        "CREATE TABLE accounts (id int PRIMARY KEY, cents int NOT NULL); INSERT INTO accounts VALUES (1, 0), (2, 0)";
    sqlx::raw_sql(schema).execute(&pool).await.expect("the table is made");
    let runs = Runs::held();
    let server = server(store, &runs).await;
    Bench { server, runs, pool, database }
}

impl Bench {
    /// Returns the sum of both accounts.
    async fn cents(&self) -> i64 {
        sqlx::query_scalar("SELECT sum(cents) FROM accounts").fetch_one(&self.pool).await.expect("an answer")
    }
}

async fn server(store: impl StoreAdmin, runs: &Runs) -> Server {
    let app = Router::new()
        .route("/postgres", post(in_postgres))
        .route("/serializable", post(serializable))
        .route("/sqlite", post(in_sqlite))
        .with_state(runs.clone());
    Server::start(app.layer(Registry::new(store).layer())).await
}

async fn send(server: &Server, path: &str, key: &str, steps: &str) -> Answer {
    answer(server.post(path).header("idempotency-key", key).body(steps.to_owned())).await
}

/// Sends a request while `beside` runs. Checks that the request is rejected as a conflict, and that its retry succeeds.
async fn assert_conflict(bench: &Bench, path: &str, key: &str, steps: &str, beside: impl Future<Output = ()>) {
    let (conflict, ()) = tokio::join!(send(&bench.server, path, key, steps), beside);
    assert_eq!(
        (conflict.status, conflict.rejection()),
        (StatusCode::SERVICE_UNAVAILABLE, "transaction_conflict".to_owned()),
        "{path} {steps}"
    );
    assert_eq!(conflict.headers["retry-after"], "0");
    bench.runs.let_finish(1);
    let retry = send(&bench.server, path, key, steps).await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, false), "{path} {steps}: {}", retry.text());
}

/// Causes a deadlock with the handler. The other transaction waits for the first account before the handler waits for
/// the second one. The handler has a shorter `deadlock_timeout`, so PostgreSQL aborts the transaction of the handler.
async fn deadlock(bench: &Bench) {
    bench.runs.until_started(bench.runs.finished() + 1).await;
    let mut other = bench.database.pool(1).await.begin().await.expect("a transaction");
    let second = "UPDATE accounts SET cents = cents + 1 WHERE id = 2";
    other.execute(second).await.expect("nothing has locked the second account");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let waiting = async || sqlx::query_scalar::<_, i64>(waits).fetch_one(&bench.pool).await.expect("an answer");
    let (updated, ()) = tokio::join!(other.execute("UPDATE accounts SET cents = cents + 1 WHERE id = 1"), async {
        eventually(waiting, |&waiting| waiting == 1).await;
        bench.runs.let_finish(1);
    });
    updated.expect("the other one goes on");
    other.rollback().await.expect("it ends");
}

#[tokio::test]
async fn deadlock_at_a_statement_is_a_conflict() {
    let bench = bench().await;
    let update = |how: &str| {
        format!(
            "sql SET LOCAL deadlock_timeout = '10ms'|sql UPDATE accounts SET cents = cents + 1 WHERE id = 1|meet|\
             {how} UPDATE accounts SET cents = cents + 1 WHERE id = 2"
        )
    };
    // Whatever the handler does with the error, the request is rejected as a conflict: its answer would describe a
    // state that has passed.
    for (key, steps) in [
        ("k1", format!("{}|failed 500", update("sql"))),
        ("k2", format!("{}|failed 400", update("raw"))),
        ("k3", update("one")),
        ("k4", format!("{}|sql SELECT 1|failed 500", update("sql"))),
    ] {
        assert_conflict(&bench, "/postgres", key, &steps, deadlock(&bench)).await;
    }
    assert_eq!(bench.cents().await, 8);
    // The engine does not see this error, so the client gets the handler's answer, unless the policy has an
    // `isolation`.
    let unseen = format!("{}|failed 502", update("helper"));
    let (own, ()) = tokio::join!(send(&bench.server, "/postgres", "k5", &unseen), deadlock(&bench));
    assert_eq!(own.status, StatusCode::BAD_GATEWAY);
    assert!(own.text().contains("deadlock"), "{}", own.text());
    assert_conflict(&bench, "/serializable", "k6", &unseen, deadlock(&bench)).await;
    assert_eq!(bench.cents().await, 10);
}

#[tokio::test]
async fn serialization_failure_at_a_statement_is_a_conflict() {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool_of_isolation("repeatable read").await;
    let bench = bench_over(database, pool).await;
    let steps = "sql SELECT * FROM accounts|meet|sql UPDATE accounts SET cents = cents + 1 WHERE id = 1|failed 500";
    for path in ["/postgres", "/serializable"] {
        let update = async {
            bench.runs.until_started(bench.runs.finished() + 1).await;
            let update = "UPDATE accounts SET cents = cents + 1 WHERE id = 1";
            bench.pool.execute(update).await.expect("nothing has locked the account");
            bench.runs.let_finish(1);
        };
        assert_conflict(&bench, path, "k", steps, update).await;
    }
    assert_eq!(bench.cents().await, 4);
}

#[tokio::test]
async fn error_of_another_cause_keeps_the_answer_under_isolation() {
    let bench = bench().await;
    let cases = [
        ("sql", "INSERT INTO accounts VALUES (1, 0)", 500, "duplicate key"),
        ("raw", "SELECT 1 / 0", 502, "division by zero"),
        ("one", "SELECT nothing", 503, "does not exist"),
        ("prepare", "SELECT nothing", 500, "does not exist"),
        ("sql", "INSERT INTO accounts VALUES (1, 0)|helper SELECT 1", 500, "duplicate key"),
    ];
    for (number, (how, sql, status, error)) in cases.into_iter().enumerate() {
        let steps = format!("{how} {sql}|failed {status}");
        for path in ["/postgres", "/serializable"] {
            let own = send(&bench.server, path, &format!("k{number}"), &steps).await;
            assert_eq!(own.status.as_u16(), status, "{path} {steps}: {}", own.text());
            assert!(own.text().contains(error), "{path} {steps}: {}", own.text());
        }
    }
    // The handler ignores the error. That is a mistake of the handler, not a conflict.
    let ignored = send(&bench.server, "/serializable", "ignored", "sql INSERT INTO accounts VALUES (1, 0)").await;
    assert_eq!(ignored.rejection(), "transaction_failed");
    // The handler goes back to a savepoint, so its transaction is in order.
    let recovered =
        "sql SAVEPOINT s|sql SELECT 1 / 0|sql ROLLBACK TO SAVEPOINT s|sql UPDATE accounts SET cents = 1 WHERE id = 1";
    for path in ["/postgres", "/serializable"] {
        let recorded = send(&bench.server, path, "recovered", recovered).await;
        assert_eq!(recorded.status, StatusCode::CREATED, "{path}");
        assert!(send(&bench.server, path, "recovered", recovered).await.is_replay(), "{path}");
    }
}

/// PostgreSQL only says that the transaction is aborted. The engine treats that as a conflict, and logs this.
#[tokio::test]
async fn unseen_error_under_isolation_counts_as_a_conflict() {
    let (logs, bench) = (Logs::collect(), bench().await);
    let insert = "INSERT INTO accounts VALUES (1, 0)";
    for steps in [format!("helper {insert}|failed 500"), format!("nested {insert}|helper {insert}|answer 201")] {
        let key = if steps.ends_with("500") { "k1" } else { "k2" };
        assert_eq!(
            send(&bench.server, "/serializable", key, &steps).await.rejection(),
            "transaction_conflict",
            "{steps}"
        );
    }
    let warnings = || {
        let says_so = |warning: &&String| warning.contains("run the statement on `&mut *tx`");
        logs.of_level("WARN").iter().filter(says_so).count()
    };
    assert_eq!(warnings(), 2, "{}", logs.text());
    // With a 4xx status, or without an `isolation`, the client gets the handler's answer.
    for (path, status) in [("/serializable", 400), ("/postgres", 400), ("/postgres", 500)] {
        let own = send(&bench.server, path, "k3", &format!("helper {insert}|failed {status}")).await;
        assert_eq!(own.status.as_u16(), status, "{path}");
        assert!(own.text().contains("duplicate key"), "{path}: {}", own.text());
    }
    assert_eq!(warnings(), 2, "{}", logs.text());
}

#[tokio::test]
async fn postgres_statement_after_a_dropped_begin_takes_no_effect() {
    let bench = bench().await;
    let mut jobs = PgListener::connect_with(&bench.pool).await.expect("a listener");
    jobs.listen("jobs").await.expect("it listens");
    // Effects that a read-only session may have.
    for effect in ["SELECT pg_notify('jobs', 'charge')", "SELECT lo_from_bytea(0, 'x')", "SELECT pg_advisory_lock(7)"] {
        for how in ["sql", "raw", "one", "prepare", "helper", "nested", "acquired", "acquired-nested"] {
            for status in [201, 502] {
                let steps = format!("begin-dropped|{how} {effect}|{how} {effect}|answer {status}");
                let key = steps.replace(|character: char| !character.is_ascii_alphanumeric(), "-");
                let ended = send(&bench.server, "/postgres", &key, &steps).await;
                if status == 201 {
                    assert_eq!(ended.rejection(), "transaction_failed", "{steps}");
                } else {
                    let says_so = |line: &str| line.contains("transaction of this handler has ended");
                    assert!(ended.text().lines().next().is_some_and(says_so), "{steps}: {}", ended.text());
                    assert_eq!(ended.text().lines().count(), 2, "{steps}: {}", ended.text());
                }
            }
        }
    }
    bench.pool.execute("NOTIFY jobs, 'the end'").await.expect("sent");
    assert_eq!(jobs.recv().await.expect("a notification").payload(), "the end");
    let kept = "SELECT (SELECT count(*) FROM pg_largeobject_metadata) + \
         (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND classid = 0 AND objsubid = 1)";
    assert_eq!(sqlx::query_scalar::<_, i64>(kept).fetch_one(&bench.pool).await.expect("an answer"), 0);
}

/// Shows the exceptions that the guide's page `transactions` names.
#[tokio::test]
async fn postgres_after_a_raw_rollback_only_rows_are_rejected() {
    let bench = bench().await;
    let mut jobs = PgListener::connect_with(&bench.pool).await.expect("a listener");
    jobs.listen("jobs").await.expect("it listens");
    let steps = "sql ROLLBACK|sql SELECT pg_notify('jobs', 'charge')|sql UPDATE accounts SET cents = 1|failed 502";
    let own = send(&bench.server, "/postgres", "k", steps).await;
    assert_eq!(own.text().matches("read-only transaction").count(), 1, "{}", own.text());
    assert_eq!(jobs.recv().await.expect("a notification").payload(), "charge");
    assert_eq!(bench.cents().await, 0);
}

#[tokio::test]
async fn sqlite_statement_after_the_end_is_rejected_and_says_so() {
    let file = SqliteFile::new();
    file.execute("CREATE TABLE names (name TEXT UNIQUE ON CONFLICT ROLLBACK)").await;
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    let server = server(store, &Runs::held()).await;
    let twice = "sql INSERT INTO names VALUES ('a')|sql INSERT INTO names VALUES ('a')";
    for (key, steps) in [
        ("k1", format!("{twice}|sql INSERT INTO names VALUES ('b')|failed 502")),
        ("k2", format!("begin-dropped|{twice}|failed 502")),
    ] {
        let ended = send(&server, "/sqlite", key, &steps).await;
        assert_eq!(ended.status, StatusCode::BAD_GATEWAY);
        assert!(ended.text().ends_with("an error by which the database ends the transaction\n"), "{}", ended.text());
    }
    assert_eq!(file.number("SELECT count(*) FROM names").await, 0);
}

#[idempotent(scope = "locks")]
async fn locks(mut tx: Tx<Postgres>) -> StatusCode {
    let lock = PgAdvisoryLock::new("of the session");
    let guard = lock.acquire(&mut *tx).await.expect("it is free");
    guard.release_now().await.expect("it is released");
    // A `Tx` dereferences to the connection, so it can be passed to functions that take the connection.
    let connection: &mut PgConnection = &mut tx;
    connection.execute("SELECT 1").await.expect("an answer");
    on_postgres(tx.as_mut(), "SELECT 1").await.expect("an answer");
    tx.ping().await.expect("an answer");
    StatusCode::CREATED
}

#[tokio::test]
async fn tx_serves_as_the_connection_itself() {
    let bench = bench().await;
    let app = Router::new().route("/locks", post(locks));
    let server = Server::start(app.layer(Registry::new(PostgresStore::new(bench.pool.clone())).layer())).await;
    for steps in ["acquired", "acquired-nested", "nested", "helper"] {
        let body = format!("{steps} UPDATE accounts SET cents = cents + 1 WHERE id = 1");
        assert_eq!(send(&bench.server, "/postgres", steps, &body).await.status, StatusCode::CREATED, "{steps}");
    }
    assert_eq!(bench.cents().await, 4);
    assert_eq!(send(&server, "/locks", "k", "").await.status, StatusCode::CREATED);
}
