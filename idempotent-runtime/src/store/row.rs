//! The conversion of rows of the SQL stores to the types of the contract. A value that does not fit is damage, never a
//! guess.

use std::sync::Arc;

use std::fmt;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use sqlx::{ColumnIndex, Decode, Row, Type};

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::record::HeadersText;
use crate::record::Record;
use crate::store::claim::{Held, Token};
use crate::store::claim_decision::{ExistingClaim, StoredState};
use crate::store::columns::{time_of, token_in};
use crate::store::entry::{Cursor, Entry, EntryState, Page, UnknownOutcomes};
use crate::store::error::StoreError;

/// A row of any database. `None` is NULL. A value of another type is an error.
pub(crate) trait Columns {
    fn text(&self, name: &str) -> Result<Option<&str>, StoreError>;
    fn flag(&self, name: &str) -> Result<Option<bool>, StoreError>;
    /// Reads a count or a status.
    fn number(&self, name: &str) -> Result<Option<i64>, StoreError>;
    /// Reads a time, a span or a length.
    fn long(&self, name: &str) -> Result<Option<i64>, StoreError>;
    fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Returns an error that names the row by its number, because keys do not belong in logs.
    fn damaged(&self, reason: impl fmt::Display) -> StoreError;
}

/// The differences between the rows of the databases.
pub(crate) trait DatabaseRow: Row {
    /// The type of a count or a status.
    type Number: Into<i64>;

    /// The table's name in messages.
    const TABLE: &'static str;
}

impl<R: DatabaseRow> Columns for R
where
    for<'n> &'n str: ColumnIndex<R>,
    for<'r> &'r str: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> bool: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> R::Number: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
{
    fn text(&self, name: &str) -> Result<Option<&str>, StoreError> {
        column(self, name)
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, StoreError> {
        column(self, name)
    }

    fn number(&self, name: &str) -> Result<Option<i64>, StoreError> {
        Ok(column::<R, R::Number>(self, name)?.map(Into::into))
    }

    fn long(&self, name: &str) -> Result<Option<i64>, StoreError> {
        column(self, name)
    }

    fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        column(self, name)
    }

    fn damaged(&self, reason: impl fmt::Display) -> StoreError {
        let id: i64 = self.try_get("id").unwrap_or_default();
        StoreError::damaged(format_args!("row {id} of {}: {reason}", R::TABLE))
    }
}

// Reads an `Option` even where a value must be present, because sqlx otherwise reads a NULL of SQLite as 0 or as empty
// text.
fn column<'r, R, T>(row: &'r R, name: &str) -> Result<Option<T>, StoreError>
where
    R: DatabaseRow + Columns,
    for<'n> &'n str: ColumnIndex<R>,
    T: Decode<'r, R::Database> + Type<R::Database>,
{
    row.try_get(name).map_err(|error| row.damaged(error))
}

impl StoredState {
    pub(crate) fn from_row(row: &impl Columns) -> Result<Self, StoreError> {
        let fingerprint = fingerprint(row)?;
        match state(row)? {
            State::Claimed => Ok(Self::Claimed(ExistingClaim {
                token: token(row)?,
                fingerprint,
                attempt: number(row, "attempt")?,
                leased: present(row, "leased", row.flag("leased")?)?,
                expires: present(row, "expires", row.flag("expires")?)?,
            })),
            State::Completed => {
                // The message of the parser would quote the header's value.
                let headers: HeadersText = serde_json::from_str(text(row, "headers")?)
                    .map_err(|_| row.damaged("the headers are not a JSON list of names and values"))?;
                let body = row.bytes("body")?.map(Into::into);
                let (headers, body) = headers.with_body(body).map_err(|error| row.damaged(error))?;
                let (status, recorded_at) = (status(row)?, recorded_at(row)?);
                Ok(Self::Completed(Record::new(status, headers, body, fingerprint, recorded_at)))
            }
        }
    }
}

impl Entry {
    pub(crate) fn from_row(row: &impl Columns) -> Result<Self, StoreError> {
        let state = match state(row)? {
            State::Claimed => EntryState::Claimed {
                attempt: number(row, "attempt")?,
                lease: Some(span(long(row, "lease_left")?)).filter(|left| !left.is_zero()),
                token: token(row)?,
            },
            State::Completed => EntryState::Completed {
                status: status(row)?,
                body_bytes: row.long("body_bytes")?.map(i64::unsigned_abs),
                recorded_at: recorded_at(row)?,
            },
        };
        // An entry that never expires has NULL here, because the database has no infinite span.
        let expires_in = row.long("time_left")?.map(span);
        Ok(Self { key: key(row)?, fingerprint: fingerprint(row)?, state, expires_in })
    }
}

impl Page {
    /// Builds a page of at most `limit` entries after the place `after`. One row more than `limit` means that there is a
    /// next page. The listing continues at the text of the column `place`, which exists even in a row whose key cannot
    /// be read.
    pub(crate) fn from_rows(
        rows: &[impl Columns],
        limit: usize,
        after: String,
        place: &str,
    ) -> Result<Self, StoreError> {
        let mut page = Self::default();
        for row in rows.iter().take(limit) {
            page.add(key(row).ok(), Entry::from_row(row))?;
        }
        if rows.len() > limit {
            let last = rows[..limit].last().map(|row| text(row, place)).transpose()?;
            page.next = Some(Cursor(last.map_or(after, str::to_owned)));
        }
        Ok(page)
    }
}

/// Counts unknown outcomes by scope. Each row has a scope, as it is written in keys, and a count.
pub(crate) fn unknown_outcomes(rows: &[impl Columns]) -> Result<UnknownOutcomes, StoreError> {
    let mut unknown = UnknownOutcomes::new();
    for row in rows {
        // The scope belongs to a damaged key, which is reported elsewhere.
        let Ok(key) = format!("{}//any", text(row, "scope")?).parse::<RecordKey>() else { continue };
        let count = u64::try_from(long(row, "count")?).unwrap_or_default();
        *unknown.entry(key.scope().into_owned()).or_default() += count;
    }
    Ok(unknown)
}

fn key(row: &impl Columns) -> Result<RecordKey, StoreError> {
    text(row, "key")?.parse().map_err(|error| row.damaged(error))
}

enum State {
    Claimed,
    Completed,
}

fn state(row: &impl Columns) -> Result<State, StoreError> {
    match text(row, "state")? {
        "claimed" => Ok(State::Claimed),
        "completed" => Ok(State::Completed),
        _ => Err(row.damaged("the state is neither `claimed` nor `completed`")),
    }
}

fn token(row: &impl Columns) -> Result<Token, StoreError> {
    token_in(text(row, "token")?).ok_or_else(|| row.damaged("the token is not hexadecimal"))
}

fn fingerprint(row: &impl Columns) -> Result<Fingerprint, StoreError> {
    text(row, "fingerprint")?.parse().map_err(|error| row.damaged(error))
}

fn status(row: &impl Columns) -> Result<StatusCode, StoreError> {
    StatusCode::from_u16(number(row, "status")?).map_err(|error| row.damaged(error))
}

fn recorded_at(row: &impl Columns) -> Result<SystemTime, StoreError> {
    time_of(long(row, "recorded_at")?).ok_or_else(|| row.damaged("`recorded_at` is out of range"))
}

/// Converts milliseconds. A negative number means that the time has passed, so zero is left.
fn span(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn text<'r>(row: &'r impl Columns, name: &str) -> Result<&'r str, StoreError> {
    present(row, name, row.text(name)?)
}

fn number<T: TryFrom<i64>>(row: &impl Columns, name: &str) -> Result<T, StoreError> {
    let number = present(row, name, row.number(name)?)?;
    number.try_into().map_err(|_| row.damaged(format_args!("`{name}` is out of range")))
}

fn long(row: &impl Columns, name: &str) -> Result<i64, StoreError> {
    present(row, name, row.long(name)?)
}

fn present<T>(row: &impl Columns, name: &str, value: Option<T>) -> Result<T, StoreError> {
    value.ok_or_else(|| row.damaged(format_args!("`{name}` is missing")))
}

/// Returns the column `headers` of a record.
pub(crate) fn headers_text(record: &Record) -> Result<String, StoreError> {
    serde_json::to_string(&HeadersText::of(record)).map_err(StoreError::unavailable)
}

/// Returns one answer for each renewal of a call that took effect or failed as a whole.
pub(crate) fn each(renewals: usize, answers: Result<Vec<Held>, StoreError>) -> Vec<Result<Held, StoreError>> {
    match answers {
        Ok(answers) => answers.into_iter().map(Ok).collect(),
        Err(error) => {
            let error: Arc<dyn std::error::Error + Send + Sync> = Arc::new(error);
            (0..renewals).map(|_| Err(StoreError::unavailable(Arc::clone(&error)))).collect()
        }
    }
}
