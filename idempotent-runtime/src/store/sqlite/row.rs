//! The rows of SQLite.

use sqlx::sqlite::SqliteRow;

use crate::store::row::DatabaseRow;

impl DatabaseRow for SqliteRow {
    type Number = i64;

    const TABLE: &'static str = "idempotency_records";
}
