//! A transaction ends while its handler runs, or the database aborts it: nothing is kept but what the handler itself
//! commits, and no client gets a success.

use std::time::Duration;

use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{PostgresStore, SqliteStore};
use idempotent_runtime::testing::{FaultyStore, TransactionPhase};
use idempotent_tests::{Logs, Mode, Server, Tmpfs, answer};
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;

use super::scripted_handlers::{OnPostgres, OnSqlite, in_postgres, in_sqlite, of_all, send, server};

/// Checks that the transaction of this handler keeps nothing, whichever status the handler answers with.
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
    // The next request gets a connection without an open transaction.
    let next = format!("next {steps}");
    assert_eq!(send(server, &next, "insert next").await.status, StatusCode::CREATED, "after {steps}");
    assert!(send(server, &next, "insert next").await.is_replay(), "after {steps}");
    assert_eq!(rows().await, ["next"], "after {steps}");
}

/// Checks that nothing of a dropped nested transaction is kept, and that the rest is. Repeats this many times, because
/// sqlx rolls back on another thread.
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

/// A commit by the handler itself cannot be undone, but later writes of the handler are not kept.
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
async fn transaction_aborted_otherwise_keeps_the_handlers_answer() {
    let bench = OnPostgres::new().await;
    let twice = "insert a|sql CREATE UNIQUE INDEX notes ON charges (note)|insert a|answer 500";
    let own = send(&bench.server, "k", twice).await;
    assert_eq!((own.status, own.text()), (StatusCode::INTERNAL_SERVER_ERROR, ""));
    assert_eq!(bench.rows().await, [""; 0]);
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
async fn sqlite_disk_full_under_a_handler_keeps_nothing() {
    let disk = Tmpfs::mount(8);
    let bench = OnSqlite::new(disk.path()).await;
    // The rows need more room than the write-ahead log has on this disk. When the statement has failed, there is room
    // again before the response is recorded.
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
        let logs = Logs::collect();
        assert_eq!(
            send(&server, &format!("{phase:?}"), "insert a").await.rejection(),
            "store_unavailable",
            "{phase:?}"
        );
        let errors = logs.of_level("ERROR");
        let [error] = &errors[..] else { panic!("{phase:?}: {errors:?}") };
        assert!(error.contains("the store failed a handler's transaction: "), "{phase:?}: {error}");
        assert!(error.contains("the client gets 503"), "{phase:?}: {error}");
    }
    // Nothing shows whether the commit of a request without a key took effect.
    let logs = Logs::collect();
    let commit = answer(server.post("/charges").body("insert a")).await;
    assert_eq!(commit.rejection(), "store_unavailable");
    let errors = logs.of_level("ERROR");
    assert!(errors.len() == 1 && !errors[0].contains("nothing was kept"), "{errors:?}");
    store.fail_transactions(None);
    assert_eq!(send(&server, "Commit", "insert b").await.status, StatusCode::CREATED, "nothing was kept");
    let rows: Vec<String> = sqlx::query_scalar("SELECT note FROM charges").fetch_all(&pool).await.expect("it is read");
    assert_eq!(rows, ["b"]);
}

#[tokio::test]
async fn caller_over_its_share_is_no_error_of_the_store() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = SqliteStore::builder(folder.path().join("app.db")).max_bytes(1 << 20).max_bytes_per_caller(1);
    let server = server(store.open().await.expect("the store opens"), post(in_sqlite)).await;
    let logs = Logs::collect();
    assert_eq!(send(&server, "k", "insert a").await.rejection(), "store_unavailable");
    assert_eq!(logs.of_level("ERROR"), [""; 0]);
    let warnings = logs.of_level("WARN");
    assert!(warnings.len() == 1 && warnings[0].contains("a caller has used up its share"), "{warnings:?}");
}
