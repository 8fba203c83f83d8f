//! Values as the contract's words; whatever does not fit is damage, never a guess.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::store::columns::token_text;
use crate::store::{Claim, Entry, EntryState, StoreError, Token};
use crate::{Fingerprint, Record, RecordKey};

/// In the order that the scripts rely on.
#[derive(Serialize)]
struct Completed<'a> {
    state: &'a str,
    token: &'a str,
    record: &'a Record,
}

#[derive(Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
enum Value {
    Claimed {
        #[serde(rename = "token")]
        _token: String,
        fingerprint: Fingerprint,
        attempt: u32,
        lease_until: u64,
        #[serde(rename = "ttl")]
        _ttl: u64,
    },
    Completed {
        #[serde(rename = "token")]
        _token: String,
        record: Record,
    },
}

/// The value of a completed key.
pub(crate) fn completed(token: Token, record: &Record) -> Result<String, StoreError> {
    let value = Completed { state: "completed", token: &token_text(token), record };
    serde_json::to_string(&value).map_err(StoreError::unavailable)
}

/// What a claim meets that is no claim.
pub(crate) fn standing(value: &[u8]) -> Result<Claim, StoreError> {
    match parse(value)? {
        Value::Completed { record, .. } => Ok(Claim::Completed(record)),
        Value::Claimed { .. } => Err(damaged("a claim that the script cannot read")),
    }
}

/// The fingerprint of a claim.
pub(super) fn fingerprint(text: &str) -> Result<Fingerprint, StoreError> {
    text.parse().map_err(|_| damaged("the fingerprint is not 64 hexadecimal digits"))
}

pub(crate) fn entry(key: RecordKey, value: &[u8], left: i64, now: u64) -> Result<Entry, StoreError> {
    let (fingerprint, state) = match parse(value)? {
        Value::Claimed { fingerprint, attempt, lease_until, .. } => {
            let lease = lease_until.checked_sub(now).filter(|&left| left > 0).map(Duration::from_millis);
            (fingerprint, EntryState::Claimed { attempt, lease })
        }
        Value::Completed { record, .. } => {
            let body_bytes = record.body_bytes().map(|body| body.len() as u64);
            let state = EntryState::Completed { status: record.status, body_bytes, recorded_at: record.recorded_at };
            (record.fingerprint, state)
        }
    };
    // A key that somebody made persistent has no end.
    let expires_in = u64::try_from(left).map_or(Duration::MAX, Duration::from_millis);
    Ok(Entry { key, fingerprint, state, expires_in })
}

/// The parser's own message would quote what it read.
fn parse(value: &[u8]) -> Result<Value, StoreError> {
    serde_json::from_slice(value).map_err(|error| {
        damaged(format_args!(
            "a value is not what this version writes, at line {} column {}",
            error.line(),
            error.column()
        ))
    })
}

pub(super) fn damaged(reason: impl std::fmt::Display) -> StoreError {
    StoreError::damaged(reason)
}
