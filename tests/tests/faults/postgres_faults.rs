//! PostgreSQL restarts or pauses under load: requests are rejected, none is executed twice, and the application needs
//! no restart.

use std::collections::HashSet;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use idempotent_runtime::store::PostgresStore;
use idempotent_runtime::{Idempotency, Registry, Tx, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::{Executions, Server, post_until_answered};
use sqlx::{PgPool, Postgres};

#[idempotent(scope = "postgres-plain")]
async fn plain(State(executions): State<Executions>, idempotency: Idempotency) -> String {
    format!("execution {}", executions.count(idempotency.key().unwrap_or_default()))
}

#[idempotent(scope = "postgres-in-transaction")]
async fn in_transaction(
    State(executions): State<Executions>,
    idempotency: Idempotency,
    mut tx: Tx<Postgres>,
) -> Result<String, String> {
    executions.count(idempotency.key().unwrap_or_default());
    let insert = sqlx::query_scalar::<_, i64>("INSERT INTO effects (key) VALUES ($1) RETURNING id");
    let id = insert.bind(idempotency.key()).fetch_one(&mut *tx).await.map_err(|error| error.to_string());
    id.map(|id| format!("effect {id}"))
}

async fn serve(pool: PgPool, executions: &Executions) -> Server {
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("the tables are made");
    let effects = "CREATE TABLE IF NOT EXISTS effects (id bigint GENERATED ALWAYS AS IDENTITY, key text NOT NULL)";
    sqlx::query(effects).execute(&pool).await.expect("the table is made");
    let registry = Registry::builder(store).store_timeout(Duration::from_millis(500)).build();
    let app = Router::new().route("/plain", post(plain)).route("/in-transaction", post(in_transaction));
    Server::start(app.with_state(executions.clone()).layer(registry.layer())).await
}

const KEYS: usize = 400;

/// Returns how many requests were rejected while `disturb` ran: those of plain handlers, and those of handlers in a
/// transaction. Checks that every key has its effect once in the end.
async fn rejected_while(
    server: &Server,
    pool: &PgPool,
    executions: &Executions,
    disturb: impl AsyncFn(),
) -> [usize; 2] {
    let disturbing = async || {
        executions.ten_more().await;
        disturb().await;
    };
    let posting = post_until_answered(server, "/plain", "p", KEYS);
    let ((answers, plain_rejected), ()) = tokio::join!(posting, disturbing());
    assert!(answers.iter().all(|answer| answer.text() == "execution 1"));
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), KEYS);
    assert_eq!((executions.total(), executions.repeated()), (KEYS, Vec::new()));

    let posting = post_until_answered(server, "/in-transaction", "t", KEYS);
    let ((answers, transactions_rejected), ()) = tokio::join!(posting, disturbing());
    assert_eq!(answers.len(), 2 * KEYS);
    let effects = sqlx::query_scalar::<_, String>("SELECT key FROM effects").fetch_all(pool).await;
    let effects = effects.expect("the server answers");
    assert_eq!((effects.len(), effects.iter().collect::<HashSet<_>>().len()), (KEYS, KEYS));
    [plain_rejected, transactions_rejected]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_load_executes_nothing_twice() {
    let server = PostgresServer::start(&[]).await;
    let (database, executions) = (server.database().await, Executions::default());
    let pool = database.pool(8).await;
    let app = serve(pool.clone(), &executions).await;
    // A restart may be over before a store call gives up, so the number of rejections is not checked.
    rejected_while(&app, &database.pool(1).await, &executions, async || server.restart().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_stopped_under_load_executes_nothing_twice() {
    let server = PostgresServer::start(&[]).await;
    let (database, executions) = (server.database().await, Executions::default());
    let pool = database.pool(8).await;
    let app = serve(pool.clone(), &executions).await;
    let pause = async || {
        server.signal("STOP");
        // The fault lasts longer than `store_timeout`.
        tokio::time::sleep(Duration::from_secs(2)).await;
        server.signal("CONT");
    };
    let rejected = rejected_while(&app, &database.pool(1).await, &executions, pause).await;
    assert!(rejected.iter().all(|&rejected| rejected > 0), "no store call waits for two seconds: {rejected:?}");
}
