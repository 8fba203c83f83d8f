//! Rows as the contract's words; whatever does not fit is damage, never a guess.

use std::fmt;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{Decode, Row as _, Type};

use crate::record::HeadersText;
use crate::store::columns::time_of;
use crate::store::standing::Standing;
use crate::store::{Entry, EntryState, StoreError, Token};
use crate::{Fingerprint, Record, RecordKey};

impl Standing {
    pub(super) fn from_row(row: &SqliteRow) -> Result<Self, StoreError> {
        let fingerprint = fingerprint(row)?;
        match state(row)? {
            State::Claimed => Ok(Self::Claimed {
                fingerprint,
                token: u128::from_str_radix(column(row, "token")?, 16)
                    .map(Token::from_u128)
                    .map_err(|_| damaged(row, "the token is not hexadecimal"))?,
                attempt: number(row, "attempt")?,
                leased: column(row, "leased")?,
            }),
            State::Completed => {
                // The parser's own message would quote the header's value.
                let headers: HeadersText = serde_json::from_str(column(row, "headers")?)
                    .map_err(|_| damaged(row, "the headers are not a JSON list of names and values"))?;
                let body = optional::<Vec<u8>>(row, "body")?.map(Into::into);
                let (headers, body) = headers.with_body(body).map_err(|error| damaged(row, error))?;
                let (status, recorded_at) = (status(row)?, recorded_at(row)?);
                Ok(Self::Completed(Record { status, headers, body, fingerprint, recorded_at }))
            }
        }
    }
}

pub(super) fn entry(row: &SqliteRow) -> Result<Entry, StoreError> {
    let state = match state(row)? {
        State::Claimed => EntryState::Claimed {
            attempt: number(row, "attempt")?,
            lease: u64::try_from(column::<i64>(row, "lease_left")?)
                .ok()
                .filter(|&left| left > 0)
                .map(Duration::from_millis),
        },
        State::Completed => EntryState::Completed {
            status: status(row)?,
            body_bytes: optional::<i64>(row, "body_bytes")?.map(i64::unsigned_abs),
            recorded_at: recorded_at(row)?,
        },
    };
    Ok(Entry {
        key: key(row)?,
        fingerprint: fingerprint(row)?,
        state,
        expires_in: Duration::from_millis(number(row, "left")?),
    })
}

pub(super) fn key(row: &SqliteRow) -> Result<RecordKey, StoreError> {
    RecordKey::parse(key_text(row)?).map_err(|error| damaged(row, error))
}

/// Also of a row whose key is none: a listing goes on after it.
pub(super) fn key_text(row: &SqliteRow) -> Result<&str, StoreError> {
    column(row, "key")
}

enum State {
    Claimed,
    Completed,
}

fn state(row: &SqliteRow) -> Result<State, StoreError> {
    match column(row, "state")? {
        "claimed" => Ok(State::Claimed),
        "completed" => Ok(State::Completed),
        _ => Err(damaged(row, "the state is neither `claimed` nor `completed`")),
    }
}

fn fingerprint(row: &SqliteRow) -> Result<Fingerprint, StoreError> {
    column::<&str>(row, "fingerprint")?.parse().map_err(|error| damaged(row, error))
}

fn status(row: &SqliteRow) -> Result<StatusCode, StoreError> {
    StatusCode::from_u16(number(row, "status")?).map_err(|error| damaged(row, error))
}

fn recorded_at(row: &SqliteRow) -> Result<SystemTime, StoreError> {
    let millis: i64 = column(row, "recorded_at")?;
    time_of(millis).ok_or_else(|| damaged(row, "`recorded_at` is out of range"))
}

fn number<T: TryFrom<i64>>(row: &SqliteRow, name: &str) -> Result<T, StoreError> {
    column::<i64>(row, name)?.try_into().map_err(|_| damaged(row, format_args!("`{name}` is out of range")))
}

fn column<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(row: &'r SqliteRow, name: &str) -> Result<T, StoreError> {
    // sqlx reads NULL as 0 or as empty text where the type is not an `Option`.
    optional(row, name)?.ok_or_else(|| damaged(row, format_args!("`{name}` is missing")))
}

fn optional<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(row: &'r SqliteRow, name: &str) -> Result<Option<T>, StoreError> {
    row.try_get(name).map_err(|error| damaged(row, error))
}

/// Names the row by its number: keys do not belong in logs.
fn damaged(row: &SqliteRow, reason: impl fmt::Display) -> StoreError {
    let id: i64 = row.try_get("id").unwrap_or_default();
    StoreError::damaged(format_args!("row {id} of idempotency_records: {reason}"))
}
