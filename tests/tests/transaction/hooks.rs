//! A handler that replaces the rollback hook of its SQLite connection: the engine does not see the end of its transaction.

use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{SqliteStore, StoreAdmin};
use idempotent_runtime::{Tx, idempotent};
use sqlx::{AssertSqlSafe, Sqlite};

use super::scripted_handlers::{OnSqlite, send, server};

/// Runs the statements of its body after it has replaced the hook.
#[idempotent(scope = "hooks")]
async fn with_its_own_hook(mut tx: Tx<Sqlite>, body: String) -> StatusCode {
    tx.lock_handle().await.expect("the connection").set_rollback_hook(|| ());
    for statement in body.split('|') {
        let _ = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *tx).await;
    }
    StatusCode::CREATED
}

#[tokio::test]
async fn no_record_is_kept_without_the_effects_of_its_handler() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bench = OnSqlite::new(folder.path()).await;
    let store = SqliteStore::open(&folder.path().join("app.db")).await.expect("the store opens");
    let server = server(store.clone(), post(with_its_own_hook)).await;
    for end in ["ROLLBACK", "COMMIT", "END", "INSERT INTO settings VALUES ('taken')"] {
        for _ in ["first", "retry"] {
            let answer = send(&server, end, &format!("INSERT INTO charges (note) VALUES ('a')|{end}")).await;
            assert!(answer.status.is_server_error(), "{end}: {}", answer.status);
        }
        assert_eq!(bench.rows().await, [""; 0], "{end}");
        assert!(store.list(None, 10).await.expect("it is listed").entries.is_empty(), "{end}");
    }
    let kept = send(&server, "kept", "INSERT INTO charges (note) VALUES ('b')").await;
    assert_eq!(kept.status, StatusCode::CREATED, "{}", kept.text());
    assert_eq!(bench.rows().await, ["b"]);
}
