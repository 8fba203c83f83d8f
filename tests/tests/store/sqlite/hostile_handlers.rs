//! Handlers that change the connection of their transaction: they hide the store's table, or replace its hook.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::Server;
use idempotent_tests::sqlite::SqliteFile;
use sqlx::Sqlite;

use super::leases::open;

/// Creates a table that hides the store's table, replaces the store's hook on the connection, or commits, as the body
/// says.
#[idempotent(scope = "sqlite-own-tables-and-hooks", cache = [201])]
async fn hostile_to_the_store(mut tx: Tx<Sqlite>, body: String) -> StatusCode {
    match body.as_str() {
        "hook" => {
            let connection: &mut sqlx::SqliteConnection = &mut tx;
            connection.lock_handle().await.expect("the handle").set_commit_hook(|| true);
        }
        "commit" => {
            let _ = sqlx::query("COMMIT").execute(&mut *tx).await;
        }
        table => {
            let _ = sqlx::raw_sql(sqlx::AssertSqlSafe(table.to_owned())).execute(&mut *tx).await;
        }
    }
    let _ = sqlx::query("INSERT INTO charges (note) VALUES ('a')").execute(&mut *tx).await;
    StatusCode::CREATED
}

async fn serve_hostile(file: &SqliteFile) -> Server {
    file.execute("CREATE TABLE charges (note TEXT)").await;
    let app = Router::new().route("/", post(hostile_to_the_store)).layer(Registry::new(open(file).await).layer());
    Server::start(app).await
}

#[tokio::test]
async fn temporary_table_of_a_handler_hides_no_record() {
    let file = SqliteFile::new();
    let server = serve_hostile(&file).await;
    let table = "CREATE TEMP TABLE idempotency_records (key TEXT UNIQUE, state, fingerprint, token, attempt, claim_ttl, \
                 lease_until, expires_at, lease_id, recorded_at, status, headers, body)";
    for replays in [false, true] {
        let answer = idempotent_tests::answer(server.post("/").header("idempotency-key", "k").body(table)).await;
        assert_eq!((answer.status, answer.is_replay()), (StatusCode::CREATED, replays));
    }
    assert_eq!(file.number("SELECT count(*) FROM charges").await, 1);
}

#[tokio::test]
async fn commit_hook_of_a_handler_does_not_outlive_it() {
    let file = SqliteFile::new();
    let server = serve_hostile(&file).await;
    let post = async |key: &'static str| {
        idempotent_tests::answer(server.post("/").header("idempotency-key", key).body(key)).await.status
    };
    assert_eq!(post("hook").await, StatusCode::CREATED);
    assert_eq!(post("commit").await, StatusCode::INTERNAL_SERVER_ERROR, "nothing is committed by the handler");
    assert_eq!(file.number("SELECT count(*) FROM charges").await, 1);
}
