//! The writer's own transactions, as plain statements.
//!
//! sqlx's `Transaction` counts its depth, and does not notice that SQLite itself rolled back.

use sqlx::sqlite::SqliteConnection;

/// Begins a transaction with the write lock.
pub(super) async fn begin(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let begun = execute(connection, "BEGIN IMMEDIATE").await;
    if begun.is_err() {
        rollback(connection).await;
    }
    begun
}

pub(super) async fn commit(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    execute(connection, "COMMIT").await
}

/// Rolls back. An error is ignored, because SQLite may have rolled back already, and the next `BEGIN` reports any other
/// problem.
pub(super) async fn rollback(connection: &mut SqliteConnection) {
    let _ = execute(connection, "ROLLBACK").await;
}

async fn execute(connection: &mut SqliteConnection, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::query(sql).execute(connection).await.map(drop)
}
