//! PostgreSQL's rows.

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::key::RecordKey;
use crate::store::error::StoreError;
use crate::store::row::{Columns as _, DatabaseRow};

/// Returns the attempt if the statement acquired the claim.
pub(super) fn acquired(row: &PgRow) -> Result<Option<u32>, StoreError> {
    if !row.flag("acquired")?.unwrap_or_default() {
        return Ok(None);
    }
    let attempt = row.number("attempt")?.and_then(|attempt| attempt.try_into().ok());
    attempt.map(Some).ok_or_else(|| row.damaged("`attempt` is out of range"))
}

/// The request whose transaction holds a key.
pub(super) enum HeldInTransaction {
    /// The same request, as far as the lock shows.
    Same,
    /// Another request. Its lock contains these bits of its fingerprint.
    Other(i32),
}

/// Returns the holder of the key if a handler in a transaction holds it.
pub(super) fn held_by_transaction(row: &PgRow) -> Result<Option<HeldInTransaction>, StoreError> {
    if marker(row)? != Some("transaction") {
        return Ok(None);
    }
    let other: Option<i32> = row.try_get("attempt").map_err(|error| row.damaged(error))?;
    Ok(Some(other.map_or(HeldInTransaction::Same, HeldInTransaction::Other)))
}

/// Returns whether the claim's token was given back before.
pub(super) fn is_given_back(row: &PgRow) -> Result<bool, StoreError> {
    Ok(marker(row)? == Some("given back"))
}

/// Returns the state of a row that the statement has generated. A row of the table has an `id`, so its state is never returned here.
fn marker(row: &PgRow) -> Result<Option<&str>, StoreError> {
    let id: Option<i64> = row.try_get("id").map_err(|error| row.damaged(error))?;
    if id.is_none() { row.text("state") } else { Ok(None) }
}

impl DatabaseRow for PgRow {
    type Number = i32;

    const TABLE: &'static str = "records";
}

/// Returns the digest of a key, as the column `digest` has it.
pub(super) fn digest(key: &RecordKey) -> [u8; 32] {
    use sha2::Digest as _;

    sha2::Sha256::digest(key.as_str()).into()
}
