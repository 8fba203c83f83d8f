//! A transaction that ends while its handler runs, or that the database aborts, keeps nothing and is told.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use idempotent_runtime::store::{PostgresStore, SqliteStore, StoreAdmin};
use idempotent_runtime::testing::{FaultyStore, TransactionPhase};
use idempotent_runtime::{RecordKey, Registry, Tx, idempotent};
use idempotent_tests::postgres::{Database, PostgresServer};
use idempotent_tests::{Answer, Executions, Mode, Runs, Server, Tmpfs, answer, eventually};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Executor as _, PgPool, Postgres, Sqlite, SqlitePool};

/// A handler that does what its body says, one step after the other, and ignores every error.
macro_rules! handler_of {
    ($name:ident, $database:ty, $scope:literal $(, $isolation:literal)?) => {
        #[idempotent(scope = $scope $(, isolation = $isolation)?)]
        async fn $name(mut tx: Tx<$database>, body: String) -> StatusCode {
            let mut status = StatusCode::CREATED;
            for step in body.split('|') {
                match step.split_once(' ').unwrap_or((step, "")) {
                    ("insert", note) => {
                        let insert = "INSERT INTO charges (note) VALUES ($1)";
                        let _ = sqlx::query(insert).bind(note).execute(&mut *tx).await;
                    }
                    ("sql", sql) => {
                        let _ = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *tx).await;
                    }
                    ("nested-dropped", note) => {
                        let mut nested = tx.begin().await.expect("a savepoint");
                        let insert = "INSERT INTO charges (note) VALUES ($1)";
                        sqlx::query(insert).bind(note).execute(&mut *nested).await.expect("it is inserted");
                    }
                    // One that is ready at once is no more than a savepoint.
                    ("begin-dropped", _) => while matches!(tx.begin().now_or_never(), Some(Ok(_))) {},
                    ("begin-forgotten", _) => std::mem::forget(tx.begin().await.expect("a savepoint")),
                    ("begin-timed-out", _) => {
                        let begun = tokio::time::timeout(Duration::from_millis(20), tx.begin()).await;
                        assert!(begun.is_err(), "the line is slow");
                    }
                    ("panic", _) => panic!("as told"),
                    ("answer", code) => status = code.parse::<u16>().unwrap().try_into().unwrap(),
                    _ => panic!("no step: {step}"),
                }
            }
            status
        }
    };
}

handler_of!(in_postgres, Postgres, "postgres");
handler_of!(in_sqlite, Sqlite, "sqlite");
handler_of!(repeatable, Postgres, "repeatable", "repeatable_read");
handler_of!(serializable, Postgres, "serializable", "serializable");

async fn send(server: &Server, key: &str, body: &str) -> Answer {
    answer(server.post("/charges").header("idempotency-key", key_of(key)).body(body.to_owned())).await
}

/// A key may hold no blanks.
fn key_of(text: &str) -> String {
    text.replace(' ', "-")
}

/// What the transaction of this handler has come to, whichever status it answered with.
async fn assert_nothing_stays<R: Future<Output = Vec<String>>>(server: &Server, steps: &str, rows: impl Fn() -> R) {
    for key in ["first", "retry"] {
        let failed = send(server, steps, steps).await;
        assert_eq!(
            (failed.status, failed.rejection()),
            (StatusCode::INTERNAL_SERVER_ERROR, "transaction_failed".to_owned()),
            "{steps} {key}"
        );
        assert_eq!(rows().await, [""; 0], "{steps} {key}");
    }
    let without_key = answer(server.post("/charges").body(steps.to_owned())).await;
    assert_eq!(without_key.rejection(), "transaction_failed", "{steps} without a key");
    let steps = format!("{steps}|answer 502");
    assert_eq!(send(server, &steps, &steps).await.status, StatusCode::BAD_GATEWAY, "{steps}");
    assert_eq!(rows().await, [""; 0], "{steps}");
    // Whoever comes next gets a connection in order.
    let next = format!("next {steps}");
    assert_eq!(send(server, &next, "insert next").await.status, StatusCode::CREATED, "after {steps}");
    assert!(send(server, &next, "insert next").await.is_replay(), "after {steps}");
    assert_eq!(rows().await, ["next"], "after {steps}");
}

/// Of a nested transaction that is dropped, and of nothing else, nothing stays. Many times: sqlx rolls it back on another thread.
async fn assert_only_the_nested_is_rolled_back<R: Future<Output = Vec<String>>>(server: &Server, rows: impl Fn() -> R) {
    let steps = vec!["nested-dropped n|insert a"; 50].join("|");
    assert_eq!(send(server, "statements", &steps).await.status, StatusCode::CREATED);
    assert_eq!(rows().await, ["a"; 50]);
    for number in 0..20 {
        let sent = send(server, &format!("end {number}"), "insert b|nested-dropped n").await;
        assert_eq!(sent.status, StatusCode::CREATED, "{}", sent.text());
        let sent = send(server, &format!("failure {number}"), "insert c|nested-dropped n|answer 502").await;
        assert_eq!(sent.status, StatusCode::BAD_GATEWAY);
    }
    assert_eq!(rows().await, [["a"; 50].as_slice(), &["b"; 20]].concat());
}

struct OnPostgres {
    server: Server,
    pool: PgPool,
    database: Database,
}

impl OnPostgres {
    async fn new() -> Self {
        let database = PostgresServer::shared().await.database().await;
        let pool = database.pool(2).await;
        let store = PostgresStore::new(pool.clone());
        store.migrate().await.expect("the tables are made");
        let charges = "CREATE TABLE charges (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL)";
        sqlx::raw_sql(charges).execute(&pool).await.expect("the table is made");
        Self { server: server(store, post(in_postgres)).await, pool, database }
    }

    async fn rows(&self) -> Vec<String> {
        rows_of(&self.pool).await
    }

    async fn clear(&self) {
        sqlx::raw_sql("DELETE FROM charges")
            .execute(&self.pool)
            .await
            .expect("the application's connections may write");
    }
}

async fn rows_of(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar("SELECT note FROM charges ORDER BY id").fetch_all(pool).await.expect("the table is read")
}

async fn server(store: impl StoreAdmin, handler: axum::routing::MethodRouter) -> Server {
    Server::start(Router::new().route("/charges", handler).layer(Registry::new(store).layer())).await
}

#[tokio::test]
async fn postgres_transaction_that_ended_keeps_nothing() {
    let bench = OnPostgres::new().await;
    for steps in [
        "insert a|begin-dropped|insert b",
        "insert a|begin-dropped|begin-dropped|insert b",
        "insert a|begin-forgotten|insert b",
        "insert a|sql ROLLBACK|insert b",
        "insert a|sql ROLLBACK AND CHAIN|insert b",
        "insert a|sql ROLLBACK|sql BEGIN|insert b",
        "insert a|sql ROLLBACK|sql BEGIN READ WRITE|insert b",
    ] {
        assert_nothing_stays(&bench.server, steps, || bench.rows()).await;
        bench.clear().await;
    }
}

#[tokio::test]
async fn postgres_nested_transaction_that_is_dropped_ends_alone() {
    let bench = OnPostgres::new().await;
    assert_only_the_nested_is_rolled_back(&bench.server, || bench.rows()).await;
}

#[tokio::test]
async fn postgres_begin_timed_out_over_a_slow_line_keeps_nothing() {
    let bench = OnPostgres::new().await;
    let proxy = bench.database.proxy();
    let over = bench.database.untested_pool_over(&proxy).await;
    let slow = server(PostgresStore::new(over), post(in_postgres)).await;
    assert_eq!(send(&slow, "warm", "answer 500").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    proxy.set(Mode::Delays(Duration::from_millis(25)));
    for status in [201, 502] {
        let body = format!("insert a|begin-timed-out|insert b|answer {status}");
        let expected = if status == 201 { 500 } else { status };
        assert_eq!(send(&slow, &body, &body).await.status.as_u16(), expected);
        assert_eq!(bench.rows().await, [""; 0], "{body}");
    }
}

/// What a handler commits by itself cannot be undone, but nothing follows it.
#[tokio::test]
async fn postgres_raw_commit_is_never_told_as_success() {
    let bench = OnPostgres::new().await;
    for commit in ["COMMIT", "COMMIT AND CHAIN"] {
        let steps = format!("insert a|sql {commit}|insert b");
        assert_eq!(send(&bench.server, commit, &steps).await.rejection(), "transaction_failed");
        assert_eq!(bench.rows().await, ["a"], "{commit}");
        bench.clear().await;
    }
}

#[tokio::test]
async fn postgres_connections_come_back_as_they_were_lent() {
    let bench = OnPostgres::new().await;
    let settings = "SELECT current_setting('default_transaction_read_only') || current_setting('role') || current_user";
    let of_the_pool: String = sqlx::query_scalar(settings).fetch_one(&bench.pool).await.expect("an answer");
    sqlx::raw_sql("CREATE ROLE clerk; GRANT INSERT ON charges TO clerk").execute(&bench.pool).await.expect("a role");
    for (key, steps) in [
        ("k1", "insert a"),
        ("k2", "insert a|answer 400"),
        ("k3", "insert a|sql ROLLBACK|answer 400"),
        ("k4", "sql SET ROLE clerk|insert a"),
        ("k5", "sql SET ROLE clerk|insert a|answer 400"),
        ("k6", "sql SELECT 1 / 0|answer 400"),
        ("k7", "sql SET TRANSACTION READ ONLY|answer 400"),
        ("k8", "insert a|begin-dropped|answer 400"),
    ] {
        let _ = send(&bench.server, key, steps).await;
        assert_eq!(of_all(&bench.pool, settings).await, [&*of_the_pool; 2], "after {steps}");
    }
    let panicked = bench.server.post("/charges").header("idempotency-key", "k9").body("insert a|panic").send().await;
    assert!(panicked.is_err(), "its connection breaks off with it: {panicked:?}");
    assert_eq!(of_all(&bench.pool, settings).await, [&*of_the_pool; 2], "after a panic");
}

/// What each connection of the pool, of two, answers.
async fn of_all(pool: &PgPool, question: &'static str) -> [String; 2] {
    let (mut first, mut second) =
        (pool.acquire().await.expect("the pool has two"), pool.acquire().await.expect("the pool has two"));
    let (first, second) = tokio::join!(
        sqlx::query_scalar(question).fetch_one(&mut *first),
        sqlx::query_scalar(question).fetch_one(&mut *second)
    );
    [first.expect("an answer"), second.expect("an answer")]
}

/// The registry's limit cuts the claim off at one await after the other.
#[tokio::test]
async fn postgres_claim_cut_off_leaves_its_connection_as_it_was() {
    let bench = OnPostgres::new().await;
    let proxy = bench.database.proxy();
    let options: PgConnectOptions = bench.database.url_over(&proxy).parse().expect("a URL");
    let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await.expect("the server answers");
    let store = PostgresStore::new(pool.clone());
    // Both connections, and the store's own, are there before the line is slow.
    assert_eq!(of_all(&pool, "SHOW default_transaction_read_only").await, ["off"; 2]);
    store.get(&RecordKey::new("postgres", None, "none")).await.expect("the store answers");
    proxy.set(Mode::Delays(Duration::from_millis(8)));
    for limit in (10..=120).step_by(10) {
        let registry = Registry::builder(store.clone()).store_timeout(Duration::from_millis(limit)).build();
        let app = Router::new().route("/charges", post(in_postgres)).layer(registry.layer());
        let server = Server::start(app).await;
        for key in [Some(format!("cut-{limit}")), None] {
            let request = server.post("/charges").body("insert a|answer 502");
            let request = key.iter().fold(request, |request, key| request.header("idempotency-key", key));
            let answered = answer(request).await;
            let is_cut = answered.status == StatusCode::SERVICE_UNAVAILABLE;
            assert!(is_cut || answered.status == StatusCode::BAD_GATEWAY, "{limit}: {answered:?}");
        }
        assert_eq!(of_all(&pool, "SHOW default_transaction_read_only").await, ["off"; 2], "cut off after {limit} ms");
    }
    assert_eq!(bench.rows().await, [""; 0]);
}

/// As an application may set it for its own statements, whatever the database says.
#[tokio::test]
async fn postgres_default_of_read_only_is_kept_as_it_was() {
    let bench = OnPostgres::new().await;
    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&bench.pool).await.expect("a name");
    let read_only = format!("ALTER DATABASE \"{name}\" SET default_transaction_read_only = on");
    sqlx::raw_sql(AssertSqlSafe(read_only)).execute(&bench.pool).await.expect("the database is altered");
    for (default, set) in [("off", "SET default_transaction_read_only = off"), ("on", "SELECT 1")] {
        let pool = PgPoolOptions::new()
            .max_connections(2)
            .after_connect(move |connection, _| Box::pin(async move { connection.execute(set).await.map(drop) }));
        let pool = pool.connect(&bench.database.url()).await.expect("the server answers");
        let server = server(PostgresStore::new(pool.clone()), post(in_postgres)).await;
        for steps in ["insert a", "insert b|answer 502", "insert b|sql ROLLBACK|insert b|answer 502"] {
            let _ = send(&server, &format!("{default} {steps}"), steps).await;
            assert_eq!(of_all(&pool, "SHOW default_transaction_read_only").await, [default; 2], "after {steps}");
        }
        assert!(send(&server, &format!("{default} insert a"), "insert a").await.is_replay());
    }
    assert_eq!(bench.rows().await, ["a"; 2]);
}

#[tokio::test]
async fn postgres_reset_of_the_session_keeps_nothing() {
    let bench = OnPostgres::new().await;
    for reset in ["RESET ALL", "DISCARD ALL"] {
        let steps = format!("insert a|sql {reset}|insert b");
        assert_eq!(send(&bench.server, reset, &steps).await.rejection(), "transaction_failed", "{reset}");
        assert_eq!(bench.rows().await, [""; 0], "{reset}");
    }
    for set in [
        "SET SESSION statement_timeout = '1min'",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET SESSION AUTHORIZATION DEFAULT",
        "RESET statement_timeout",
        "DISCARD PLANS",
    ] {
        let steps = format!("insert a|sql {set}|insert b");
        assert_eq!(send(&bench.server, set, &steps).await.status, StatusCode::CREATED, "{set}");
        assert!(send(&bench.server, set, &steps).await.is_replay(), "{set}");
        assert_eq!(bench.rows().await, ["a", "b"], "{set}");
        assert_eq!(of_all(&bench.pool, "SHOW default_transaction_read_only").await, ["off"; 2], "{set}");
        bench.clear().await;
    }
}

/// Behind a pooler, a COMMIT that fails gives the session away before it can be given its own setting back.
#[tokio::test]
async fn postgres_session_left_read_only_is_restored_by_the_next_tx() {
    let bench = OnPostgres::new().await;
    let as_left_behind = "SET default_transaction_read_only = on; \
                          SELECT set_config('idempotent_runtime.read_only', 'off', false)";
    for steps in ["insert a", "insert b|answer 502"] {
        let pool = PgPoolOptions::new().max_connections(1).after_connect(move |connection, _| {
            Box::pin(async move { sqlx::raw_sql(as_left_behind).execute(connection).await.map(drop) })
        });
        let pool = pool.connect(&bench.database.url()).await.expect("the server answers");
        let of_the_session = "SELECT current_setting('default_transaction_read_only') || pg_backend_pid()";
        let session =
            async || sqlx::query_scalar::<_, String>(of_the_session).fetch_one(&pool).await.expect("an answer");
        let left_behind = session().await;
        let server = server(PostgresStore::new(pool.clone()), post(in_postgres)).await;
        let _ = send(&server, steps, steps).await;
        assert_eq!(session().await, left_behind.replacen("on", "off", 1), "after {steps}");
    }
    assert_eq!(bench.rows().await, ["a"]);
}

#[tokio::test]
async fn postgres_transaction_that_cannot_be_recorded_is_told() {
    let bench = OnPostgres::new().await;
    let schema = "CREATE TABLE accounts (id bigint PRIMARY KEY);
        CREATE TABLE entries (account bigint REFERENCES accounts DEFERRABLE INITIALLY DEFERRED)";
    sqlx::raw_sql(schema).execute(&bench.pool).await.expect("the tables are made");
    for (steps, code) in [
        ("sql SET TRANSACTION READ ONLY", "transaction_failed"),
        ("insert a|sql INSERT INTO entries VALUES (1)", "transaction_failed"),
    ] {
        assert_eq!(send(&bench.server, steps, steps).await.rejection(), code, "{steps}");
        assert_eq!(bench.rows().await, [""; 0], "{steps}");
        assert_eq!(of_all(&bench.pool, "SHOW default_transaction_read_only").await, ["off"; 2], "{steps}");
    }
    assert_eq!(send(&bench.server, "next", "insert next").await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn postgres_role_without_privileges_runs_and_records() {
    let bench = OnPostgres::new().await;
    let role = format!("cashier{}", std::process::id());
    let made = format!(
        "CREATE ROLE {role} LOGIN; GRANT INSERT, SELECT ON charges TO {role}; GRANT USAGE ON SCHEMA idempotency TO {role}; \
         GRANT ALL ON ALL TABLES IN SCHEMA idempotency TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA idempotency TO {role}"
    );
    sqlx::raw_sql(AssertSqlSafe(made)).execute(&bench.pool).await.expect("a role");
    let options: PgConnectOptions = bench.database.url().parse().expect("a URL");
    let pool =
        PgPoolOptions::new().max_connections(2).connect_with(options.username(&role)).await.expect("it connects");
    let server = server(PostgresStore::new(pool.clone()), post(in_postgres)).await;
    for steps in ["insert a", "sql SET ROLE none|insert a"] {
        assert_eq!(send(&server, steps, steps).await.status, StatusCode::CREATED, "{steps}");
        assert!(send(&server, steps, steps).await.is_replay(), "{steps}");
    }
    assert_eq!(send(&server, "lost", "insert a|sql ROLLBACK").await.rejection(), "transaction_failed");
    assert_eq!(bench.rows().await, ["a"; 2]);
    pool.close().await;
    drop(server);
    let dropped = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    let dropped = async || sqlx::raw_sql(AssertSqlSafe(dropped.clone())).execute(&bench.pool).await.is_ok();
    eventually(dropped, |is_dropped| *is_dropped).await;
}

#[tokio::test]
async fn isolation_is_that_of_the_handlers_transaction() {
    let bench = OnPostgres::new().await;
    let store = PostgresStore::new(bench.pool.clone());
    let app = Router::new().route("/repeatable", post(repeatable)).route("/serializable", post(serializable));
    let server = Server::start(app.layer(Registry::new(store).layer())).await;
    let level = "sql INSERT INTO charges (note) SELECT current_setting('transaction_isolation')";
    for path in ["/repeatable", "/serializable"] {
        for request in [server.post(path), server.post(path).header("idempotency-key", "k")] {
            assert_eq!(answer(request.body(level)).await.status, StatusCode::CREATED, "{path}");
        }
        // No conflict: the transaction is in order, or was aborted by what the client is told.
        for (steps, status) in [("insert a|answer 500", 500), ("sql SELECT 1 / 0|answer 409", 409)] {
            let own = answer(server.post(path).header("idempotency-key", key_of(steps)).body(steps)).await;
            assert_eq!((own.status.as_u16(), own.text()), (status, ""), "{path} {steps}");
        }
    }
    let levels = ["repeatable read", "repeatable read", "serializable", "serializable"];
    assert_eq!(bench.rows().await, levels);
}

#[tokio::test]
async fn transaction_aborted_otherwise_keeps_the_handlers_answer() {
    let bench = OnPostgres::new().await;
    let twice = "insert a|sql CREATE UNIQUE INDEX notes ON charges (note)|insert a|answer 500";
    let own = send(&bench.server, "k", twice).await;
    assert_eq!((own.status, own.text()), (StatusCode::INTERNAL_SERVER_ERROR, ""));
    assert_eq!(bench.rows().await, [""; 0]);
}

#[tokio::test]
async fn postgres_handler_under_another_role_is_recorded() {
    let bench = OnPostgres::new().await;
    let role = format!("teller{}", std::process::id());
    let made = format!("CREATE ROLE {role}; GRANT INSERT ON charges TO {role}");
    sqlx::raw_sql(AssertSqlSafe(made)).execute(&bench.pool).await.expect("a role");
    for (key, change) in [
        ("k1", format!("SET LOCAL ROLE {role}")),
        ("k2", format!("SET ROLE {role}")),
        ("k3", format!("SET LOCAL SESSION AUTHORIZATION {role}")),
        ("k4", "SET LOCAL search_path = nowhere, public".to_owned()),
        ("k5", "SET CONSTRAINTS ALL DEFERRED".to_owned()),
    ] {
        let steps = format!("sql {change}|insert a");
        assert_eq!(send(&bench.server, key, &steps).await.status, StatusCode::CREATED, "{change}");
        assert!(send(&bench.server, key, &steps).await.is_replay(), "{change}");
    }
    assert_eq!(bench.rows().await, ["a"; 5]);
    let dropped = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    sqlx::raw_sql(AssertSqlSafe(dropped)).execute(&bench.pool).await.expect("the role is dropped");
}

struct OnSqlite {
    server: Server,
    pool: SqlitePool,
}

impl OnSqlite {
    async fn new(folder: &std::path::Path) -> Self {
        let path = folder.join("app.db");
        let store = SqliteStore::open(&path).await.expect("the store opens");
        let pool = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&path)).await.expect("it opens");
        let schema = "CREATE TABLE charges (id INTEGER PRIMARY KEY, note TEXT NOT NULL);
            CREATE TABLE settings (name TEXT UNIQUE ON CONFLICT ROLLBACK);
            INSERT INTO settings VALUES ('taken');
            CREATE TRIGGER no_rollbacks BEFORE INSERT ON charges WHEN NEW.note = 'forbidden'
            BEGIN SELECT RAISE(ROLLBACK, 'forbidden'); END;";
        sqlx::raw_sql(schema).execute(&pool).await.expect("the tables are made");
        Self { server: server(store, post(in_sqlite)).await, pool }
    }

    async fn rows(&self) -> Vec<String> {
        sqlx::query_scalar("SELECT note FROM charges ORDER BY id").fetch_all(&self.pool).await.expect("it is read")
    }
}

#[tokio::test]
async fn sqlite_transaction_that_ended_keeps_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bench = OnSqlite::new(folder.path()).await;
    for steps in [
        "insert a|begin-dropped|insert b",
        "insert a|begin-forgotten|insert b",
        "insert a|sql ROLLBACK|insert b",
        "insert a|sql ROLLBACK|sql BEGIN|insert b",
        "insert a|sql ROLLBACK|sql BEGIN IMMEDIATE|insert b",
        "insert a|sql COMMIT|insert b",
        "insert a|sql COMMIT|sql BEGIN|insert b|sql COMMIT",
        "insert a|sql INSERT INTO settings VALUES ('taken')|insert b",
        "insert a|insert forbidden|insert b",
    ] {
        assert_nothing_stays(&bench.server, steps, || bench.rows()).await;
        sqlx::raw_sql("DELETE FROM charges").execute(&bench.pool).await.expect("the table is emptied");
    }
}

#[tokio::test]
async fn sqlite_nested_transaction_that_is_dropped_ends_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bench = OnSqlite::new(folder.path()).await;
    assert_only_the_nested_is_rolled_back(&bench.server, || bench.rows()).await;
}

#[tokio::test]
async fn sqlite_settings_of_a_handler_reach_no_other() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bench = OnSqlite::new(folder.path()).await;
    let positive = "CREATE TABLE positive (n INTEGER CHECK (n > 0))";
    sqlx::raw_sql(positive).execute(&bench.pool).await.expect("the table is made");
    for steps in [
        "sql PRAGMA query_only = ON",
        "sql PRAGMA ignore_check_constraints = ON",
        "sql CREATE TEMP TABLE charges (note TEXT)",
        "sql PRAGMA case_sensitive_like = ON",
    ] {
        for end in ["answer 201", "answer 500", "begin-forgotten"] {
            send(&bench.server, &format!("{steps} {end}"), &format!("{steps}|answer 500|{end}")).await;
            let next = "insert b|sql INSERT INTO positive VALUES (-1)|sql INSERT INTO charges (note) SELECT 'c' WHERE 'a' NOT LIKE 'A'";
            let next = send(&bench.server, &format!("after {steps} {end}"), next).await;
            assert_eq!(next.status, StatusCode::CREATED, "after {steps}, {end}: {}", next.text());
            assert_eq!(bench.rows().await, ["b"], "after {steps}, {end}");
            let negative = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM positive").fetch_one(&bench.pool).await;
            assert_eq!(negative.expect("it is counted"), 0, "after {steps}, {end}");
            sqlx::raw_sql("DELETE FROM charges").execute(&bench.pool).await.expect("the table is emptied");
        }
    }
}

#[tokio::test]
async fn sqlite_disk_full_under_a_handler_keeps_nothing() {
    let disk = Tmpfs::mount(8);
    let bench = OnSqlite::new(disk.path()).await;
    // More than the log can hold without room, and room again before the response is recorded.
    let large = "insert a|sql WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000) \
                 INSERT INTO charges (note) SELECT hex(randomblob(2000)) FROM n|insert b";
    for status in [201, 502] {
        let body = format!("{large}|answer {status}");
        let failed = send(&bench.server, &body, &body).await;
        assert_ne!(failed.status, StatusCode::CREATED);
        assert_eq!(bench.rows().await, [""; 0]);
    }
    assert_eq!(send(&bench.server, "next", "insert next").await.status, StatusCode::CREATED);
    assert_eq!(bench.rows().await, ["next"]);
}

#[idempotent(scope = "counts", isolation = "serializable")]
async fn counts(mut tx: Tx<Postgres>, State(runs): State<Runs>, how: String) -> StatusCode {
    let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM charges").fetch_one(&mut *tx).await;
    let count = count.expect("a snapshot is read");
    runs.run().await;
    let write = match how.as_str() {
        "update" => "UPDATE counters SET value = value + $1",
        _ => "INSERT INTO charges (note) VALUES ('n' || $1)",
    };
    match sqlx::query(write).bind(count).execute(&mut *tx).await {
        Ok(_) => StatusCode::CREATED,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[tokio::test]
async fn serialization_failure_is_503_and_the_retry_succeeds() {
    let bench = OnPostgres::new().await;
    sqlx::raw_sql("CREATE TABLE counters (value bigint NOT NULL); INSERT INTO counters VALUES (0)")
        .execute(&bench.pool)
        .await
        .expect("the table is made");
    let runs = Runs::held();
    let registry = Registry::new(PostgresStore::new(bench.pool.clone()));
    let app = Router::new().route("/charges", post(counts)).with_state(runs.clone()).layer(registry.layer());
    let server = Server::start(app).await;
    // At a statement: the row was updated meanwhile. At the record or at COMMIT: both have read what the other one writes.
    for how in ["update", "insert"] {
        let started = runs.started();
        let keys = [format!("{how} 1"), format!("{how} 2")];
        let (answers, ()) = tokio::join!(join_all(keys.iter().map(|key| send(&server, key, how))), async {
            runs.until_started(started + 2).await;
            runs.let_finish(2);
        });
        let lost: Vec<_> = (0..2).filter(|&at| answers[at].status != StatusCode::CREATED).collect();
        assert_eq!(lost.len(), 1, "{answers:?}");
        let rejected = &answers[lost[0]];
        assert_eq!(
            (rejected.status, rejected.rejection()),
            (StatusCode::SERVICE_UNAVAILABLE, "transaction_conflict".to_owned())
        );
        assert_eq!(rejected.headers["retry-after"], "0");
        runs.let_finish(1);
        let retry = send(&server, &keys[lost[0]], how).await;
        assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, false), "{how}");
    }
    assert_eq!(bench.rows().await.len(), 2);
}

#[idempotent(scope = "executions")]
async fn executed(_tx: Tx<Postgres>, State(executions): State<Executions>, key: String) -> StatusCode {
    executions.count(&key);
    StatusCode::CREATED
}

#[tokio::test]
async fn serializable_by_default_no_key_begins_twice() {
    let bench = OnPostgres::new().await;
    let executions = Executions::default();
    let mut servers = Vec::new();
    for _ in 0..2 {
        let pool = bench.database.pool_of_isolation("serializable").await;
        let registry = Registry::new(PostgresStore::new(pool));
        let app = Router::new().route("/charges", post(executed)).with_state(executions.clone());
        servers.push(Server::start(app.layer(registry.layer())).await);
    }
    let keys: Vec<String> = (0..300).map(|number| format!("k{number}")).collect();
    for some in keys.chunks(20) {
        let requests = some.iter().flat_map(|key| (0..4).map(move |number| (key, number)));
        join_all(requests.map(|(key, number)| send(&servers[number % 2], key, key))).await;
    }
    for key in &keys {
        assert!(
            eventually(async || send(&servers[0], key, key).await, |answer| answer.status == StatusCode::CREATED)
                .await
                .is_replay()
        );
    }
    assert_eq!((executions.total(), executions.repeated()), (300, Vec::new()));
}

#[tokio::test]
async fn faults_of_the_testing_kit_hit_each_phase_of_a_tx() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.db");
    let store = FaultyStore::around(SqliteStore::open(&path).await.expect("the store opens"));
    let pool = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&path)).await.expect("it opens");
    sqlx::raw_sql("CREATE TABLE charges (note TEXT)").execute(&pool).await.expect("the table is made");
    let server = server(store.clone(), post(in_sqlite)).await;
    for phase in [TransactionPhase::Begin, TransactionPhase::Record, TransactionPhase::Commit] {
        store.fail_transactions(Some(phase));
        assert_eq!(
            send(&server, &format!("{phase:?}"), "insert a").await.rejection(),
            "store_unavailable",
            "{phase:?}"
        );
    }
    store.fail_transactions(None);
    assert_eq!(send(&server, "Commit", "insert b").await.status, StatusCode::CREATED, "nothing was kept");
    let rows: Vec<String> = sqlx::query_scalar("SELECT note FROM charges").fetch_all(&pool).await.expect("it is read");
    assert_eq!(rows, ["b"]);
}
