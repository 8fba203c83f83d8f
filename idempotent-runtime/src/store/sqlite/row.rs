//! Rows as the contract's words; whatever does not fit is damage, never a guess.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{Decode, Row as _, Type};

use crate::store::{AfterCrash, Claim, ClaimRequest, Entry, EntryState, StoreError, Token};
use crate::{Fingerprint, HeadersText, Record, RecordKey, RecordedBody};

/// What stands under a key and is alive.
pub(super) enum Standing {
    Claimed { fingerprint: Fingerprint, token: Token, attempt: u32, leased: bool },
    Completed(Record),
}

/// What becomes of a claim.
pub(super) enum Verdict {
    /// Nothing changes.
    Answer(Claim),
    /// The key is the claimant's to take.
    Take { attempt: u32 },
}

/// Readers and the writer decide by the same rule; only the writer may act on [`Verdict::Take`].
pub(super) fn judge(standing: Option<Standing>, request: &ClaimRequest) -> Verdict {
    let Some(standing) = standing else { return Verdict::Take { attempt: 1 } };
    Verdict::Answer(match standing {
        Standing::Completed(record) => Claim::Completed(record),
        Standing::Claimed { token, attempt, .. } if token == request.token => Claim::Acquired { attempt },
        Standing::Claimed { fingerprint, leased: true, .. } => Claim::InFlight { fingerprint },
        Standing::Claimed { fingerprint, attempt, .. }
            if fingerprint == request.fingerprint && request.after_crash == AfterCrash::Rerun =>
        {
            return Verdict::Take { attempt: attempt.saturating_add(1) };
        }
        Standing::Claimed { fingerprint, .. } => Claim::Lapsed { fingerprint },
    })
}

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
            State::Completed => Ok(Self::Completed(Record {
                status: status(row)?,
                // The parser's own message would quote the header's value.
                headers: serde_json::from_str::<HeadersText>(column(row, "headers")?)
                    .map_err(|_| damaged(row, "the headers are not a JSON list of names and values"))?
                    .0,
                body: optional::<Vec<u8>>(row, "body")?
                    .map_or(RecordedBody::NotRecorded, |body| RecordedBody::Whole(body.into())),
                fingerprint,
                recorded_at: recorded_at(row)?,
            })),
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
        key: RecordKey::parse(column(row, "key")?).map_err(|error| damaged(row, error))?,
        fingerprint: fingerprint(row)?,
        state,
        expires_in: Duration::from_millis(number(row, "left")?),
    })
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
    let distance = Duration::from_millis(millis.unsigned_abs());
    let time = if millis < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.ok_or_else(|| damaged(row, "`recorded_at` is out of range"))
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

/// A time as `recorded_at` keeps it.
pub(super) fn unix_millis(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
        Err(error) => i64::try_from(error.duration().as_millis()).map_or(i64::MIN, |before| -before),
    }
}

/// A span that SQLite can add to now without overflow; a part of a millisecond counts as a whole one.
pub(super) fn span_millis(span: Duration) -> i64 {
    i64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX).min(i64::MAX / 2)
}

/// A token as `token` keeps it.
pub(super) fn token_text(token: Token) -> String {
    format!("{:032x}", token.as_u128())
}
