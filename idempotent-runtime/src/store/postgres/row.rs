//! Rows as the contract's words; whatever does not fit is damage, never a guess.

use std::fmt;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use sqlx::postgres::{PgRow, Postgres};
use sqlx::{Decode, Row as _, Type};

use crate::record::HeadersText;
use crate::store::columns::time_of;
use crate::store::standing::Standing;
use crate::store::{Entry, EntryState, StoreError, Token};
use crate::{Fingerprint, Record, RecordKey};

/// Whether the statement made the claim, and as which attempt.
pub(super) fn acquired(row: &PgRow) -> Result<Option<u32>, StoreError> {
    if column(row, "acquired")? { number(row, "attempt").map(Some) } else { Ok(None) }
}

pub(super) fn standing(row: &PgRow) -> Result<Standing, StoreError> {
    let fingerprint = fingerprint(row)?;
    match state(row)? {
        State::Claimed => Ok(Standing::Claimed {
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
            Ok(Standing::Completed(Record { status, headers, body, fingerprint, recorded_at }))
        }
    }
}

pub(super) fn entry(row: &PgRow) -> Result<Entry, StoreError> {
    let state = match state(row)? {
        State::Claimed => EntryState::Claimed {
            attempt: number(row, "attempt")?,
            lease: optional::<i64>(row, "lease_left")?
                .and_then(|left| u64::try_from(left).ok())
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
        expires_in: Duration::from_millis(column::<i64>(row, "time_left")?.unsigned_abs()),
    })
}

pub(super) fn key(row: &PgRow) -> Result<RecordKey, StoreError> {
    RecordKey::parse(column(row, "key")?).map_err(|error| damaged(row, error))
}

/// Its place in a listing, which a row whose key cannot be read has too.
pub(super) fn place(row: &PgRow) -> Result<String, StoreError> {
    column(row, "place")
}

enum State {
    Claimed,
    Completed,
}

fn state(row: &PgRow) -> Result<State, StoreError> {
    match column(row, "state")? {
        "claimed" => Ok(State::Claimed),
        "completed" => Ok(State::Completed),
        _ => Err(damaged(row, "the state is neither `claimed` nor `completed`")),
    }
}

fn fingerprint(row: &PgRow) -> Result<Fingerprint, StoreError> {
    column::<&str>(row, "fingerprint")?.parse().map_err(|error| damaged(row, error))
}

fn status(row: &PgRow) -> Result<StatusCode, StoreError> {
    StatusCode::from_u16(number(row, "status")?).map_err(|error| damaged(row, error))
}

fn recorded_at(row: &PgRow) -> Result<SystemTime, StoreError> {
    time_of(column(row, "recorded_at")?).ok_or_else(|| damaged(row, "`recorded_at` is out of range"))
}

fn number<T: TryFrom<i32>>(row: &PgRow, name: &str) -> Result<T, StoreError> {
    column::<i32>(row, name)?.try_into().map_err(|_| damaged(row, format_args!("`{name}` is out of range")))
}

fn column<'r, T: Decode<'r, Postgres> + Type<Postgres>>(row: &'r PgRow, name: &str) -> Result<T, StoreError> {
    optional(row, name)?.ok_or_else(|| damaged(row, format_args!("`{name}` is missing")))
}

fn optional<'r, T: Decode<'r, Postgres> + Type<Postgres>>(row: &'r PgRow, name: &str) -> Result<Option<T>, StoreError> {
    row.try_get(name).map_err(|error| damaged(row, error))
}

/// Names the row by its number: keys do not belong in logs.
fn damaged(row: &PgRow, reason: impl fmt::Display) -> StoreError {
    let id: i64 = row.try_get("id").unwrap_or_default();
    StoreError::damaged(format_args!("row {id} of records: {reason}"))
}

/// A key as `digest` keeps it.
pub(super) fn digest(key: &RecordKey) -> [u8; 32] {
    use sha2::Digest as _;

    sha2::Sha256::digest(key.as_str()).into()
}
