//! The connection of a handler's transaction: roles, settings and interrupted claims on it affect no other request.

use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{PostgresStore, StoreAdmin};
use idempotent_runtime::{RecordKey, Registry};
use idempotent_tests::{Mode, Server, answer, eventually};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor as _};

use super::scripted_handlers::{OnPostgres, OnSqlite, in_postgres, of_all, send, server};

#[tokio::test]
async fn postgres_connections_come_back_unchanged() {
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

/// With each longer `store_timeout`, the claim is interrupted at a later await.
#[tokio::test]
async fn postgres_claim_cut_off_leaves_its_connection_as_it_was() {
    let bench = OnPostgres::new().await;
    let proxy = bench.database.proxy();
    let options: PgConnectOptions = bench.database.url_over(&proxy).parse().expect("a URL");
    let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await.expect("the server answers");
    let store = PostgresStore::new(pool.clone());
    // Both connections, and the store's own, are open before the proxy is slow.
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

/// An application may set this default for its own connections, whatever the default of the database is.
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

/// Behind a pooler, a failed COMMIT can give the session to another client before its own setting is restored.
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
        "direct PRAGMA query_only = ON",
        "direct create temporary table charges (note TEXT)",
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
