//! PostgreSQL's rows.

use std::fmt;

use sqlx::postgres::{PgRow, Postgres};
use sqlx::{Decode, Row as _, Type};

use crate::key::RecordKey;
use crate::store::error::StoreError;
use crate::store::row::Columns;

/// Whether the statement made the claim, and as which attempt.
pub(super) fn acquired(row: &PgRow) -> Result<Option<u32>, StoreError> {
    if !row.flag("acquired")?.unwrap_or_default() {
        return Ok(None);
    }
    let attempt = row.number("attempt")?.and_then(|attempt| attempt.try_into().ok());
    attempt.map(Some).ok_or_else(|| row.damaged("`attempt` is out of range"))
}

/// The request whose transaction holds a key.
pub(super) enum HeldInTransaction {
    /// The same request, as far as its lock shows.
    Same,
    /// Another request. Its lock has these bits of its fingerprint.
    Other(i32),
}

/// Whether a handler in a transaction holds the key.
pub(super) fn held_by_transaction(row: &PgRow) -> Result<Option<HeldInTransaction>, StoreError> {
    if row.text("state")? != Some("transaction") {
        return Ok(None);
    }
    let other: Option<i32> = column(row, "attempt")?;
    Ok(Some(other.map_or(HeldInTransaction::Same, HeldInTransaction::Other)))
}

/// Whether the claim's token was given back before.
pub(super) fn is_given_back(row: &PgRow) -> Result<bool, StoreError> {
    Ok(row.text("state")? == Some("given back"))
}

/// The cursor of a page that ends with this row.
pub(super) fn place(row: &PgRow) -> Result<String, StoreError> {
    let place = row.text("place")?.map(str::to_owned);
    place.ok_or_else(|| row.damaged("`place` is missing"))
}

impl Columns for PgRow {
    fn text(&self, name: &str) -> Result<Option<&str>, StoreError> {
        column(self, name)
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, StoreError> {
        column(self, name)
    }

    fn number(&self, name: &str) -> Result<Option<i64>, StoreError> {
        Ok(column::<i32>(self, name)?.map(i64::from))
    }

    fn long(&self, name: &str) -> Result<Option<i64>, StoreError> {
        column(self, name)
    }

    fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        column(self, name)
    }

    fn damaged(&self, reason: impl fmt::Display) -> StoreError {
        let id: i64 = self.try_get("id").unwrap_or_default();
        StoreError::damaged(format_args!("row {id} of records: {reason}"))
    }
}

fn column<'r, T: Decode<'r, Postgres> + Type<Postgres>>(row: &'r PgRow, name: &str) -> Result<Option<T>, StoreError> {
    row.try_get(name).map_err(|error| row.damaged(error))
}

/// A key as `digest` keeps it.
pub(super) fn digest(key: &RecordKey) -> [u8; 32] {
    use sha2::Digest as _;

    sha2::Sha256::digest(key.as_str()).into()
}
