//! Handlers that run the steps in the body of their request, and servers with a table for them.

use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::FutureExt as _;
use idempotent_runtime::store::{SqliteStore, StoreAdmin};
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::postgres::Database;
use idempotent_tests::stores::postgres_beside;
use idempotent_tests::{Answer, Server, answer};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, PgPool, Postgres, Sqlite, SqlitePool};

/// Defines a handler that runs the steps of its body in order, and ignores every error of a statement.
macro_rules! handler_of {
    ($name:ident, $database:ty, $scope:literal $(, $isolation:literal)?) => {
        #[idempotent(scope = $scope $(, isolation = $isolation)?)]
        pub(super) async fn $name(mut tx: Tx<$database>, body: String) -> StatusCode {
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
                    ("direct", sql) => {
                        let _ = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut **tx).await;
                    }
                    ("nested-dropped", note) => {
                        let mut nested = tx.begin().await.expect("a savepoint");
                        let insert = "INSERT INTO charges (note) VALUES ($1)";
                        sqlx::query(insert).bind(note).execute(&mut *nested).await.expect("it is inserted");
                    }
                    // A `begin` that is ready at once only makes a savepoint. The loop ends with one that is dropped
                    // while it waits.
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

pub(super) async fn send(server: &Server, key: &str, body: &str) -> Answer {
    answer(server.post("/charges").header("idempotency-key", key_of(key)).body(body.to_owned())).await
}

/// Returns the text as a key, which must not contain spaces.
pub(super) fn key_of(text: &str) -> String {
    text.replace(' ', "-")
}

pub(super) struct OnPostgres {
    pub(super) server: Server,
    pub(super) pool: PgPool,
    pub(super) database: Database,
}

impl OnPostgres {
    pub(super) async fn new() -> Self {
        let charges = "CREATE TABLE charges (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL)";
        let (store, pool, database) = postgres_beside(charges, 2).await;
        Self { server: server(store, post(in_postgres)).await, pool, database }
    }

    pub(super) async fn rows(&self) -> Vec<String> {
        rows_of(&self.pool).await
    }

    pub(super) async fn clear(&self) {
        sqlx::raw_sql("DELETE FROM charges")
            .execute(&self.pool)
            .await
            .expect("the application's connections may write");
    }
}

pub(super) async fn rows_of(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar("SELECT note FROM charges ORDER BY id").fetch_all(pool).await.expect("the table is read")
}

pub(super) async fn server(store: impl StoreAdmin, handler: axum::routing::MethodRouter) -> Server {
    Server::start(Router::new().route("/charges", handler).layer(Registry::new(store).layer())).await
}

/// Returns the answers of both connections of the pool, which has exactly two.
pub(super) async fn of_all(pool: &PgPool, question: &'static str) -> [String; 2] {
    let (mut first, mut second) =
        (pool.acquire().await.expect("the pool has two"), pool.acquire().await.expect("the pool has two"));
    let (first, second) = tokio::join!(
        sqlx::query_scalar(question).fetch_one(&mut *first),
        sqlx::query_scalar(question).fetch_one(&mut *second)
    );
    [first.expect("an answer"), second.expect("an answer")]
}

pub(super) struct OnSqlite {
    pub(super) server: Server,
    pub(super) pool: SqlitePool,
}

impl OnSqlite {
    pub(super) async fn new(folder: &std::path::Path) -> Self {
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

    pub(super) async fn rows(&self) -> Vec<String> {
        sqlx::query_scalar("SELECT note FROM charges ORDER BY id").fetch_all(&self.pool).await.expect("it is read")
    }
}
