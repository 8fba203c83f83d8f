//! Savepoints of a `Tx`. Whatever happens to a nested `begin`, the engine commits nothing without the record of the
//! response. If the handler or sqlx has sent a COMMIT, no retry runs the handler again.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::FutureExt as _;
use idempotent_runtime::store::{PostgresStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::stores::postgres_beside;
use idempotent_tests::{Answer, Logs, Runs, Server, answer};
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Acquire, AssertSqlSafe, Connection as _, Postgres, Sqlite};
use tower_http::catch_panic::CatchPanicLayer;

use crate::bench::Bench;

/// Defines a handler that begins two nested savepoints, does in them as the body says, and answers 201 despite all
/// errors.
macro_rules! handler_of {
    ($name:ident, $database:ty, $connection:ty, $scope:literal) => {
        #[idempotent(scope = $scope)]
        async fn $name(mut tx: Tx<$database>, State(runs): State<Runs>, body: String) -> StatusCode {
            async fn insert(connection: &mut $connection, note: &'static str) -> Result<(), sqlx::Error> {
                let insert = "INSERT INTO charges (note) VALUES ($1)";
                sqlx::query(insert).bind(note).execute(connection).await.map(drop)
            }
            runs.run().await;
            sqlx::query("INSERT INTO charges (note) VALUES ('transaction')").execute(&mut *tx).await.expect("a row");
            let mut outer = tx.begin().await.expect("a savepoint");
            insert(&mut outer, "outer").await.expect("a row");
            let mut inner = outer.begin().await.expect("a savepoint");
            insert(&mut inner, "inner").await.expect("a row");
            match body.as_str() {
                // A `begin` that is ready at once only makes a savepoint. The loop ends with one that is dropped while
                // it waits.
                "dropped" => while matches!(inner.begin().now_or_never(), Some(Ok(_))) {},
                "dropped twice" => {
                    while matches!(inner.begin().now_or_never(), Some(Ok(_))) {}
                    drop(inner.begin().await);
                }
                "dropped by sqlx" => while matches!(Acquire::begin(&mut *inner).now_or_never(), Some(Ok(_))) {},
                "failed" => {
                    sqlx::query("SELECT nothing").execute(&mut *inner).await.expect_err("there is no such column");
                    inner.begin().await.map(drop).expect_err("the transaction is aborted");
                }
                "failed on the connection" => {
                    let connection: &mut $connection = &mut inner;
                    connection.begin_with("BEGIN").await.map(drop).expect_err("it is no savepoint");
                }
                "forgotten" => std::mem::forget(inner.begin().await.expect("a savepoint")),
                _ => {}
            }
            let _ = insert(&mut inner, "late").await;
            let ended = [inner.commit().await, outer.commit().await];
            if body != "in order" {
                for ended in ended {
                    let error = ended.expect_err("nothing may be committed").to_string();
                    assert!(error.contains("the transaction of this handler has ended"), "{body}: {error}");
                }
            }
            StatusCode::CREATED
        }
    };
}

handler_of!(on_postgres, Postgres, PgConnection, "savepoints-postgres");
handler_of!(on_sqlite, Sqlite, SqliteConnection, "savepoints-sqlite");

async fn server(store: impl StoreAdmin, runs: &Runs) -> Server {
    let app = Router::new()
        .route("/postgres", post(on_postgres))
        .route("/sqlite", post(on_sqlite))
        .route("/lines", post(lines))
        .route("/statements", post(statements))
        .route("/accounts", post(create_account))
        .route("/entries", post(create_entry))
        .with_state(runs.clone());
    Server::start(app.layer(CatchPanicLayer::new()).layer(Registry::new(store).layer())).await
}

async fn send(server: &Server, path: &str, key: &str, body: &str) -> Answer {
    let key: String = key.chars().map(|char| if char.is_ascii_alphanumeric() { char } else { '-' }).collect();
    answer(server.post(path).header("idempotency-key", key).body(body.to_owned())).await
}

async fn assert_failed_twice(server: &Server, path: &str, body: &str) {
    for round in ["first", "retry"] {
        let failed = send(server, path, body, body).await;
        assert_eq!(
            (failed.status, failed.rejection()),
            (StatusCode::INTERNAL_SERVER_ERROR, "transaction_failed".to_owned()),
            "{body}, {round}"
        );
    }
}

async fn bench() -> Bench {
    let schema = "CREATE TABLE charges (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL)";
    let (store, pool, database) = postgres_beside(schema, 4).await;
    let runs = Runs::free();
    let server = server(store, &runs).await;
    Bench { server, runs, pool, database }
}

impl Bench {
    async fn rows(&self) -> Vec<String> {
        let rows = sqlx::query_scalar("SELECT note FROM charges ORDER BY id").fetch_all(&self.pool).await;
        rows.expect("the table is read")
    }

    async fn execute(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.pool).await.expect("executed");
    }

    /// Checks that a retry gets 409, in this process and in another one, and that nothing runs.
    async fn assert_never_run_again(&self, path: &str, key: &str, body: &str) {
        let (runs, rows) = (self.runs.started(), self.rows().await);
        let elsewhere = server(PostgresStore::new(self.database.pool(2).await), &self.runs).await;
        for server in [&self.server, &elsewhere] {
            let retry = send(server, path, key, body).await;
            assert_eq!(
                (retry.status, retry.rejection()),
                (StatusCode::CONFLICT, "response_not_recorded".to_owned()),
                "{body}"
            );
        }
        assert_eq!((self.runs.started(), self.rows().await), (runs, rows), "{body}");
    }
}

#[tokio::test]
async fn postgres_nested_begin_that_is_lost_commits_nothing() {
    let bench = bench().await;
    let cases = ["dropped", "dropped twice", "dropped by sqlx", "failed", "failed on the connection", "forgotten"];
    for body in cases {
        assert_failed_twice(&bench.server, "/postgres", body).await;
        assert_eq!(bench.rows().await, [""; 0], "{body}");
    }
    assert_eq!(send(&bench.server, "/postgres", "k", "in order").await.status, StatusCode::CREATED);
    assert_eq!(bench.rows().await, ["transaction", "outer", "inner", "late"]);
}

#[tokio::test]
async fn sqlite_nested_begin_that_is_lost_commits_nothing() {
    let file = SqliteFile::new();
    file.execute("CREATE TABLE charges (id INTEGER PRIMARY KEY, note TEXT NOT NULL)").await;
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    let server = server(store, &Runs::free()).await;
    for body in ["dropped", "dropped twice", "dropped by sqlx", "forgotten"] {
        assert_failed_twice(&server, "/sqlite", body).await;
        assert_eq!(file.number("SELECT count(*) FROM charges").await, 0, "{body}");
    }
    assert_eq!(send(&server, "/sqlite", "k", "in order").await.status, StatusCode::CREATED);
    assert_eq!(file.number("SELECT count(*) FROM charges").await, 4);
}

/// Saves an order of a batch, on the connection itself. A mistake at its beginning aborts the order, and lines that
/// fail are left out. After the first line, sqlx counts two levels too few, so the COMMIT of the order ends the whole
/// transaction.
#[idempotent(scope = "savepoints-lines")]
async fn lines(mut tx: Tx<Postgres>, State(runs): State<Runs>) -> StatusCode {
    async fn line(order: &mut PgConnection, note: &'static str) -> Result<(), sqlx::Error> {
        let mut line = Acquire::begin(order).await?;
        sqlx::query("INSERT INTO charges (note) VALUES ($1)").bind(note).execute(&mut *line).await?;
        line.commit().await
    }
    runs.run().await;
    let connection: &mut PgConnection = &mut tx;
    let mut batch = Acquire::begin(connection).await.expect("a savepoint");
    let mut order = Acquire::begin(&mut *batch).await.expect("a savepoint");
    let mistake = sqlx::query("INSERT INTO charges (note) VALUES (NULL)").execute(&mut *order).await;
    mistake.expect_err("the note is missing");
    for note in ["one", "two", "three"] {
        let _ = line(&mut order, note).await;
    }
    let _ = (order.commit().await, batch.commit().await);
    StatusCode::CREATED
}

/// Runs the statements of its body in order, and then answers with the status at the end of the body, or panics.
#[idempotent(scope = "savepoints-statements")]
async fn statements(mut tx: Tx<Postgres>, State(runs): State<Runs>, body: String) -> StatusCode {
    runs.run().await;
    let (statements, end) = body.rsplit_once('|').expect("an end");
    for sql in statements.split('|') {
        let _ = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *tx).await;
    }
    assert_ne!(end, "panic", "as told");
    end.parse::<u16>().expect("a status").try_into().expect("a status")
}

#[tokio::test]
async fn commit_by_the_handler_is_never_run_again() {
    let (logs, bench) = (Logs::collect(), bench().await);
    let insert = "INSERT INTO charges (note) VALUES ('a')";
    for (number, end) in
        ["COMMIT|201", "COMMIT|502", "COMMIT AND CHAIN|201", "COMMIT|BEGIN|409", "COMMIT|panic"].into_iter().enumerate()
    {
        let (key, body) = (format!("k{number}"), format!("{insert}|{end}"));
        let first = send(&bench.server, "/statements", &key, &body).await;
        assert_eq!(first.status, StatusCode::INTERNAL_SERVER_ERROR, "{end}");
        if end != "COMMIT|panic" {
            assert_eq!(first.rejection(), "transaction_failed", "{end}");
        }
        assert_eq!(bench.rows().await.len(), number + 1, "{end}");
        bench.assert_never_run_again("/statements", &key, &body).await;
    }
    let told = |line: &&String| line.contains("409 `response_not_recorded`") && line.contains("savepoints-statements");
    assert_eq!(logs.of_level("ERROR").iter().filter(told).count(), 5, "{}", logs.text());
    // A ROLLBACK by the handler keeps nothing, and a retry runs.
    let body = format!("{insert}|ROLLBACK|409");
    for _ in 0..2 {
        assert_eq!(send(&bench.server, "/statements", "rollback", &body).await.status, StatusCode::CONFLICT);
    }
    assert_eq!((bench.runs.started(), bench.rows().await.len()), (7, 5));
}

#[tokio::test]
async fn commit_by_sqlx_is_never_run_again() {
    let bench = bench().await;
    assert_eq!(send(&bench.server, "/lines", "k", "").await.rejection(), "transaction_failed");
    assert_eq!(bench.rows().await, ["two", "three"], "once sqlx counts right, this test can go");
    bench.assert_never_run_again("/lines", "k", "").await;
}

#[tokio::test]
async fn commit_before_the_connection_breaks_is_never_run_again() {
    let bench = bench().await;
    let body = "INSERT INTO charges (note) VALUES ('a')|COMMIT|SELECT pg_terminate_backend(pg_backend_pid())|201";
    assert_eq!(send(&bench.server, "/statements", "k", body).await.rejection(), "transaction_failed");
    bench.assert_never_run_again("/statements", "k", body).await;
    assert_eq!((bench.runs.started(), bench.rows().await), (1, vec!["a".to_owned()]));
}

/// Answers 409 for a name that is taken, and 500 for any other error.
#[idempotent(scope = "savepoints-accounts", cache = [201, 409], isolation = "repeatable_read")]
async fn create_account(mut tx: Tx<Postgres>, State(runs): State<Runs>, sql: String) -> StatusCode {
    sqlx::query("INSERT INTO charges (note) VALUES ('attempt')").execute(&mut *tx).await.expect("a row");
    runs.run().await;
    let inserted = async {
        let mut savepoint = tx.begin().await?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *savepoint).await?;
        savepoint.commit().await
    };
    match inserted.await {
        Ok(()) => StatusCode::CREATED,
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => StatusCode::CONFLICT,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[tokio::test]
async fn error_in_a_savepoint_aborts_nothing_but_a_conflict_is_told() {
    let bench = bench().await;
    bench.execute("CREATE UNIQUE INDEX names ON charges (note) WHERE note <> 'attempt'").await;
    let insert = "INSERT INTO charges (note) VALUES ('ada')";
    assert_eq!(send(&bench.server, "/accounts", "k1", insert).await.status, StatusCode::CREATED);
    let taken = send(&bench.server, "/accounts", "k2", insert).await;
    assert_eq!((taken.status, taken.text()), (StatusCode::CONFLICT, ""), "the handler's own");
    assert!(send(&bench.server, "/accounts", "k2", insert).await.is_replay());
    assert_eq!(bench.rows().await, ["attempt", "ada", "attempt"]);
    // After any other error, the client gets the handler's answer. A conflict is rejected, because a retry may succeed.
    let own = send(&bench.server, "/accounts", "k3", "SELECT 1 / 0").await;
    assert_eq!((own.status, own.text()), (StatusCode::INTERNAL_SERVER_ERROR, ""));
    for code in ["40001", "40P01"] {
        let conflict = format!("DO $$ BEGIN RAISE EXCEPTION 'another one' USING ERRCODE = '{code}'; END $$");
        let told = send(&bench.server, "/accounts", code, &conflict).await;
        assert_eq!((told.rejection().as_str(), &told.headers["retry-after"] == "0"), ("transaction_conflict", true));
    }
    assert_eq!(bench.rows().await.len(), 3);
}

#[idempotent(scope = "savepoints-conflicts")]
async fn conflict_then_begin(mut tx: Tx<Postgres>, body: String) -> StatusCode {
    let conflict = "DO $$ BEGIN RAISE EXCEPTION 'another one' USING ERRCODE = '40001'; END $$";
    sqlx::raw_sql(conflict).execute(&mut *tx).await.expect_err("it is raised");
    tx.begin().await.map(drop).expect_err("the transaction is aborted");
    body.parse::<u16>().expect("a status").try_into().expect("a status")
}

#[tokio::test]
async fn conflict_before_a_begin_that_fails_is_told_as_one() {
    let bench = bench().await;
    let app = Router::new().route("/charges", post(conflict_then_begin));
    let server = Server::start(app.layer(Registry::new(PostgresStore::new(bench.pool.clone())).layer())).await;
    for status in ["201", "500", "404"] {
        let told = send(&server, "/charges", status, status).await;
        assert_eq!(told.rejection(), "transaction_conflict", "{status}");
    }
}

/// Inserts a child without its parent, which a deferred constraint detects at COMMIT.
#[idempotent(scope = "savepoints-entries")]
async fn create_entry(mut tx: Tx<Sqlite>, State(runs): State<Runs>) -> StatusCode {
    runs.run().await;
    sqlx::query("INSERT INTO entries VALUES (5)").execute(&mut *tx).await.expect("it is deferred");
    StatusCode::CREATED
}

#[tokio::test]
async fn sqlite_deferred_constraint_that_fails_is_told_as_permanent() {
    let file = SqliteFile::new();
    file.execute(
        "CREATE TABLE accounts (id INTEGER PRIMARY KEY);
         CREATE TABLE entries (account INTEGER REFERENCES accounts DEFERRABLE INITIALLY DEFERRED);",
    )
    .await;
    let (runs, store) = (Runs::free(), SqliteStore::open(file.path()).await.expect("the store opens"));
    let server = server(store, &runs).await;
    assert_failed_twice(&server, "/entries", "k").await;
    assert_eq!(file.number("SELECT count(*) FROM entries").await, 0);
    file.execute("INSERT INTO accounts VALUES (5)").await;
    assert_eq!(send(&server, "/entries", "k", "k").await.status, StatusCode::CREATED, "nothing was kept");
}
