//! `Tx`: a handler whose row and record commit together, compared with the same handler that uses its own transaction.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use idempotent_runtime::store::{PostgresStore, SqliteStore};
use idempotent_runtime::{Registry, Tx, idempotent};
use idempotent_tests::postgres::PostgresServer;
use sqlx::postgres::{PgConnection, PgExecutor, PgPool};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteExecutor, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Postgres, Sqlite};

use idempotent_benches::charge::{CHARGES, Order, Receipt, charge};
use idempotent_benches::engines::contest::{Effort, Outcome, Side, charges, contest, next_number};
use idempotent_benches::engines::postgres::{BARE_TABLE, insert_record, of_callers, pool};
use idempotent_benches::engines::sample::body;
use idempotent_benches::report::{Section, Table, figure};

const CALLERS: [usize; 2] = [1, 16];

const INSERT: &str = "INSERT INTO charges (note) VALUES ($1)";

async fn insert_in_postgres(executor: impl PgExecutor<'_>) {
    sqlx::query(INSERT).bind(note()).execute(executor).await.expect("the row is inserted");
}

async fn insert_in_sqlite(executor: impl SqliteExecutor<'_>) {
    sqlx::query(INSERT).bind(note()).execute(executor).await.expect("the row is inserted");
}

fn note() -> String {
    String::from_utf8_lossy(&body()).into_owned()
}

#[idempotent(scope = "charges_in_postgres")]
async fn guarded_in_postgres(mut tx: Tx<Postgres>, Json(order): Json<Order>) -> (StatusCode, Json<Receipt>) {
    insert_in_postgres(&mut *tx).await;
    charge(order)
}

async fn bare_in_postgres(State(pool): State<PgPool>, Json(order): Json<Order>) -> (StatusCode, Json<Receipt>) {
    let mut transaction = pool.begin().await.expect("the database answers");
    insert_in_postgres(&mut *transaction).await;
    transaction.commit().await.expect("the database answers");
    charge(order)
}

/// Has as many round trips as `Tx`. The added statements do nothing useful.
async fn padded_in_postgres(State(pool): State<PgPool>, Json(order): Json<Order>) -> (StatusCode, Json<Receipt>) {
    let mut transaction = pool.begin().await.expect("the database answers");
    nothing(&mut transaction).await;
    insert_in_postgres(&mut *transaction).await;
    nothing(&mut transaction).await;
    nothing(&mut transaction).await;
    transaction.commit().await.expect("the database answers");
    charge(order)
}

/// Records by hand. It has no lock, looks up nothing and proves nothing.
async fn recorded_in_postgres(State(pool): State<PgPool>, Json(order): Json<Order>) -> (StatusCode, Json<Receipt>) {
    let mut transaction = pool.begin().await.expect("the database answers");
    insert_in_postgres(&mut *transaction).await;
    insert_record(&mut *transaction, next_number()).await;
    transaction.commit().await.expect("the database answers");
    charge(order)
}

async fn nothing(connection: &mut PgConnection) {
    sqlx::query("SELECT 1").execute(connection).await.expect("the database answers");
}

#[idempotent(scope = "charges_in_sqlite")]
async fn guarded_in_sqlite(mut tx: Tx<Sqlite>, Json(order): Json<Order>) -> (StatusCode, Json<Receipt>) {
    insert_in_sqlite(&mut *tx).await;
    charge(order)
}

async fn bare_in_sqlite(State(pool): State<SqlitePool>, Json(order): Json<Order>) -> (StatusCode, Json<Receipt>) {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.expect("the disk works");
    insert_in_sqlite(&mut *transaction).await;
    transaction.commit().await.expect("the disk works");
    charge(order)
}

/// Measures handlers on both databases.
///
/// # Panics
///
/// When a database does not answer.
pub async fn measure(section: &mut Section, effort: Effort, server: &PostgresServer) {
    let mut table = Table::new(
        "A handler that inserts one row: executions per second, and the time of one over that of its transaction alone",
        &["", "`Tx`", "transaction alone", "time"],
    );
    let database = server.database().await;
    let of_application = pool(&database, 20).await;
    let create = "CREATE TABLE charges (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL)";
    sqlx::query(create).execute(&of_application).await.expect("the table is made");
    let store = PostgresStore::new(pool(&database, 20).await);
    store.migrate().await.expect("the tables are made");
    let guarded = Router::new().route(CHARGES, post(guarded_in_postgres)).layer(Registry::new(store).layer());
    let bare = Router::new().route(CHARGES, post(bare_in_postgres)).with_state(of_application.clone());
    compare(section, &mut table, effort, "PostgreSQL", &guarded, &bare).await;
    sqlx::query(BARE_TABLE).execute(&of_application).await.expect("the table is made");
    let recorded = Router::new().route(CHARGES, post(recorded_in_postgres)).with_state(of_application.clone());
    for callers in CALLERS {
        let (by_hand, alone) =
            (Side::new(callers, charges(recorded.clone())), Side::new(callers, charges(bare.clone())));
        let name = format!("PostgreSQL: the record by hand, with {}", of_callers(callers));
        let Outcome { ours, bare, ratio } = contest(&name, effort, &by_hand, &alone).await;
        table.row([name, figure(ours, ""), figure(bare, ""), figure(1.0 / ratio, "×")]);
    }
    let padded = Router::new().route(CHARGES, post(padded_in_postgres)).with_state(of_application);
    let (ours, alone) =
        (Side::new(CALLERS[1], charges(guarded.clone())), Side::new(CALLERS[1], charges(padded.clone())));
    let name = format!("PostgreSQL: `Tx` with {} callers, against as many round trips without work", CALLERS[1]);
    let Outcome { ours, bare, ratio } = contest(&name, effort, &ours, &alone).await;
    table.row([name, figure(ours, ""), figure(bare, ""), figure(1.0 / ratio, "×")]);

    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = SqliteStore::open(folder.path().join("guarded.db")).await.expect("the store opens");
    create_in_sqlite(&folder.path().join("guarded.db")).await.close().await;
    let alone = create_in_sqlite(&folder.path().join("bare.db")).await;
    let guarded = Router::new().route(CHARGES, post(guarded_in_sqlite)).layer(Registry::new(store).layer());
    let bare = Router::new().route(CHARGES, post(bare_in_sqlite)).with_state(alone);
    compare(section, &mut table, effort, "SQLite", &guarded, &bare).await;
    section.tables.push(table);
    section.text.push(
        "`Tx` is measured through an axum router in process, over the same databases: with the attribute, and without it in a \
         handler that begins and commits its own transaction. With PostgreSQL, each side has 20 connections. With SQLite, each \
         side has one connection for transactions, which begin with the write lock. `Tx` needs six round trips to PostgreSQL \
         where the bare handler needs three: BEGIN with the locks, a look-up under the locks, the handler's own statement, the \
         proof that the transaction is still the same, the record, and COMMIT. sqlx sends each statement after the answer to the \
         one before. With 16 callers, the processor is the limit; the last row of PostgreSQL compares `Tx` with a handler that \
         sends three more statements without work. *The record by hand* is the limit for a record in the same transaction: one \
         more `INSERT`, of a row with the same columns and one index. It has no lock, so duplicates run twice, and a retry gets \
         an error. With SQLite, `Tx` adds a look-up of the key, in one call with the begin, and the \
         record, in one call with the commit; each commit is one write to the disk, as without `Tx`. The handlers run their \
         statements on the `Tx` as an executor."
            .to_owned(),
    );
}

/// One connection, because the store has one connection for handlers: SQLite allows only one writer.
async fn create_in_sqlite(path: &std::path::Path) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
    let pool = SqlitePoolOptions::new().max_connections(1).test_before_acquire(false).connect_with(options).await;
    let pool = pool.expect("the file opens");
    let create = "CREATE TABLE charges (id INTEGER PRIMARY KEY, note TEXT NOT NULL)";
    sqlx::query(create).execute(&pool).await.expect("the table is made");
    pool
}

async fn compare(
    section: &mut Section,
    table: &mut Table,
    effort: Effort,
    engine: &str,
    guarded: &Router,
    bare: &Router,
) {
    let limits = if engine == "SQLite" { [1.3, 1.3] } else { [1.4, 1.6] };
    for (callers, limit) in CALLERS.into_iter().zip(limits) {
        let name = format!("{engine}: `Tx` with {}", of_callers(callers));
        let (ours, alone) = (Side::new(callers, charges(guarded.clone())), Side::new(callers, charges(bare.clone())));
        let Outcome { ours, bare, ratio } = contest(&name, effort, &ours, &alone).await;
        table.row([name.clone(), figure(ours, ""), figure(bare, ""), figure(1.0 / ratio, "×")]);
        section.at_most(&format!("{name}, over the transaction alone"), limit, 1.0 / ratio, "×");
    }
}
