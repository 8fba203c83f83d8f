//! SQLite's rows.

use std::fmt;

use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{Decode, Row as _, Type};

use crate::store::error::StoreError;
use crate::store::row::Columns;

/// The cursor of a page that ends with this row.
pub(super) fn place(row: &SqliteRow) -> Result<String, StoreError> {
    let place = row.text("key")?.map(str::to_owned);
    place.ok_or_else(|| row.damaged("`key` is missing"))
}

impl Columns for SqliteRow {
    fn text(&self, name: &str) -> Result<Option<&str>, StoreError> {
        column(self, name)
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, StoreError> {
        column(self, name)
    }

    fn number(&self, name: &str) -> Result<Option<i64>, StoreError> {
        column(self, name)
    }

    fn long(&self, name: &str) -> Result<Option<i64>, StoreError> {
        column(self, name)
    }

    fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        column(self, name)
    }

    fn damaged(&self, reason: impl fmt::Display) -> StoreError {
        let id: i64 = self.try_get("id").unwrap_or_default();
        StoreError::damaged(format_args!("row {id} of idempotency_records: {reason}"))
    }
}

// An `Option` even where a value must be there: sqlx reads NULL as 0 or as empty text otherwise.
fn column<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(row: &'r SqliteRow, name: &str) -> Result<Option<T>, StoreError> {
    row.try_get(name).map_err(|error| row.damaged(error))
}
