//! The conversion of values to the types of the contract. A value that does not fit is damage, never a guess.

use std::io::Write as _;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::fingerprint::Fingerprint;
use crate::hexadecimal::write_hexadecimal;
use crate::key::RecordKey;
use crate::record::text::{self, Rest};
use crate::record::{Record, VERSION};
use crate::store::claim::{Claim, ClaimRequest, Token};
use crate::store::columns::{span_millis, token_in};
use crate::store::entry::{Entry, EntryState};
use crate::store::error::StoreError;

// The value of a record. Scripts and listings rely on the order of its members, because a listing reads only the beginning
// and the end of a value. The token follows the first of these, the number of bytes the second, and the record the last.
const COMPLETED: &[u8] = br#"{"state":"completed","token":""#;
const BODY_BYTES: &[u8] = br#"","body_bytes":"#;
const NULL: &[u8] = b"null";
const RECORD: &[u8] = br#","record":"#;

/// The number of first bytes that a listing reads. They contain all of a claim, and everything before the headers of a
/// record.
pub(super) const HEAD: usize = 256;

/// The number of last bytes that a listing reads. They contain everything after the body of a record.
pub(super) const TAIL: usize = 144;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClaimValue {
    #[serde(rename = "state")]
    _state: IsClaimed,
    token: String,
    fingerprint: Fingerprint,
    attempt: u32,
    /// A claim that expires has its lease and its ttl here. The expiry of the name shows the rest of both.
    lease: Option<u64>,
    ttl: Option<u64>,
    /// A claim that never expires has the end of its lease here, by the server's clock, in milliseconds since 1970.
    lease_until: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordValue {
    #[serde(rename = "state")]
    _state: IsCompleted,
    #[serde(rename = "token")]
    _token: String,
    body_bytes: Option<u64>,
    record: Record,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum IsClaimed {
    Claimed,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum IsCompleted {
    Completed,
}

/// The length of most records without their body, in bytes.
const WITHOUT_BODY: usize = 768;

const TOKEN_DIGITS: usize = 32;

const CLAIMED: &[u8] = br#"{"state":"claimed""#;

/// Returns whether the value begins like a claim.
pub(super) fn may_be_claim(value: &[u8]) -> bool {
    value.starts_with(CLAIMED)
}

/// Returns the value of a first claim that expires, as the scripts read and write it too.
pub(super) fn claimed(request: &ClaimRequest) -> Vec<u8> {
    let mut text = Vec::with_capacity(HEAD);
    text.extend_from_slice(CLAIMED);
    text.extend_from_slice(br#","token":""#);
    write_hexadecimal(&request.token.as_u128().to_be_bytes(), &mut text);
    text.extend_from_slice(br#"","fingerprint":""#);
    write_hexadecimal(request.fingerprint.as_bytes(), &mut text);
    text.extend_from_slice(br#"","attempt":1"#);
    let (lease, ttl) = (span_millis(request.lease), span_millis(request.ttl));
    write!(text, r#","lease":{lease},"ttl":{ttl}}}"#).expect("memory takes all of it");
    text
}

/// Returns the value of a completed key.
pub(crate) fn completed(token: Token, record: &Record) -> Result<String, StoreError> {
    let body_bytes = body_bytes(record);
    // Most records fit, so the text need not be moved while it grows.
    let body_in_base64 = body_bytes.map_or(0, |bytes| usize::try_from(bytes).unwrap_or_default() / 3 * 4);
    let mut text = Vec::with_capacity(WITHOUT_BODY + body_in_base64);
    text.extend_from_slice(COMPLETED);
    write_hexadecimal(&token.as_u128().to_be_bytes(), &mut text);
    text.extend_from_slice(BODY_BYTES);
    match body_bytes {
        Some(bytes) => write!(text, "{bytes}").map_err(StoreError::unavailable)?,
        None => text.extend_from_slice(NULL),
    }
    text.extend_from_slice(RECORD);
    text::write(record, &mut text).map_err(StoreError::unavailable)?;
    text.push(b'}');
    String::from_utf8(text).map_err(StoreError::unavailable)
}

/// Converts an existing value that is no claim to the answer of a claim.
pub(crate) fn existing(value: &[u8]) -> Result<Claim, StoreError> {
    if may_be_claim(value) {
        return Err(damaged("a claim that the script cannot read"));
    }
    recorded(value).map(Claim::Completed)
}

fn recorded(value: &[u8]) -> Result<Record, StoreError> {
    if let Some(record) = as_written(value) {
        return Ok(record);
    }
    let RecordValue { body_bytes: told, record, .. } = parse(value).map_err(|error| newer(value).unwrap_or(error))?;
    if told == body_bytes(&record) { Ok(record) } else { Err(damaged("the body is not as long as the record says")) }
}

/// Reads a value that is just as [`completed`] writes most of them.
fn as_written(value: &[u8]) -> Option<Record> {
    let mut rest = Rest(value.strip_suffix(b"}")?);
    rest.skip(COMPLETED)?;
    let (token, after) = rest.0.split_at_checked(TOKEN_DIGITS)?;
    rest.0 = after;
    rest.skip(BODY_BYTES)?;
    let told = if rest.skip(NULL).is_some() { None } else { Some(rest.number()?) };
    rest.skip(RECORD)?;
    let record = text::read(rest.0)?;
    (token.iter().all(u8::is_ascii_hexdigit) && told == body_bytes(&record)).then_some(record)
}

/// Returns an error if a newer version of this library has written the record.
fn newer(value: &[u8]) -> Option<StoreError> {
    #[derive(Deserialize)]
    struct AnyValue {
        record: AnyRecord,
    }
    #[derive(Deserialize)]
    struct AnyRecord {
        version: u32,
    }
    let found = serde_json::from_slice::<AnyValue>(value).ok()?.record.version;
    (found > VERSION).then(|| {
        damaged(format_args!(
            "the record has version {found}, this library reads version {VERSION}: update `idempotent-runtime`"
        ))
    })
}

fn body_bytes(record: &Record) -> Option<u64> {
    record.body_bytes().map(|body| body.len() as u64)
}

/// Parses the fingerprint of a claim.
pub(super) fn fingerprint(text: &str) -> Result<Fingerprint, StoreError> {
    text.parse().map_err(|_| damaged("the fingerprint is not 64 hexadecimal digits"))
}

/// Parses an entry. `left` is the key's remaining time to live by the server, and `now` is the server's time, both in
/// milliseconds. `now` counts from 1970.
pub(crate) fn entry(key: RecordKey, value: &[u8], left: i64, now: i64) -> Result<Entry, StoreError> {
    let (fingerprint, state) = if may_be_claim(value) {
        let ClaimValue { token, fingerprint, attempt, lease, ttl, lease_until, .. } = parse(value)?;
        let lease = match (lease, ttl, lease_until) {
            (Some(lease), Some(ttl), None) => lease.checked_sub(passed(left, ttl)),
            (None, None, Some(lease_until)) => lease_until.checked_sub(now.try_into().unwrap_or_default()),
            _ => return Err(damaged("a claim has either `lease` and `ttl`, or `lease_until`")),
        };
        let lease = lease.filter(|&left| left > 0).map(Duration::from_millis);
        let token = token_in(&token).ok_or_else(|| damaged("the token is not hexadecimal"))?;
        (fingerprint, EntryState::Claimed { attempt, lease, token })
    } else {
        let record = recorded(value)?;
        let body_bytes = body_bytes(&record);
        let state = EntryState::Completed { status: record.status, body_bytes, recorded_at: record.recorded_at };
        (record.fingerprint, state)
    };
    let expires_in = u64::try_from(left).ok().map(Duration::from_millis);
    Ok(Entry { key, fingerprint, state, expires_in })
}

/// Parses an entry from the beginning and the end of its value.
pub(crate) fn summary(key: RecordKey, head: &[u8], tail: &[u8], left: i64, now: i64) -> Result<Entry, StoreError> {
    if may_be_claim(head) {
        return entry(key, head, left, now);
    }
    let (head, tail) = (String::from_utf8_lossy(head), String::from_utf8_lossy(tail));
    summary_of_record(&head, &tail)
        .map(|(body_bytes, record)| {
            let state = EntryState::Completed { status: record.status, body_bytes, recorded_at: record.recorded_at };
            let expires_in = u64::try_from(left).ok().map(Duration::from_millis);
            Entry { key, fingerprint: record.fingerprint, state, expires_in }
        })
        .ok_or_else(|| damaged("a value is not what this version writes"))
}

/// Returns the length of the body, and the record without headers and body.
fn summary_of_record(head: &str, tail: &str) -> Option<(Option<u64>, Record)> {
    let head = head.strip_prefix(r#"{"state":"completed","token":""#)?;
    let (_, head) = head.split_once(r#"","body_bytes":"#)?;
    let (body_bytes, head) = head.split_once(r#","record":{"#)?;
    let (beginning, _) = head.split_once(r#","headers":"#)?;
    // No body ends with this text, because base64 has no quotes.
    let end = &tail[tail.rfind(r#","fingerprint":""#)?..];
    let record = format!(r#"{{{beginning},"headers":[],"body":null{}"#, end.strip_suffix('}')?);
    Some((serde_json::from_str(body_bytes).ok()?, serde_json::from_str(&record).ok()?))
}

/// Returns the part of the time to live that has passed, or zero if it has no end.
fn passed(left: i64, ttl: u64) -> u64 {
    u64::try_from(left).map_or(0, |left| ttl.saturating_sub(left))
}

/// Parses a value. The parser's own message would quote the value.
fn parse<T: DeserializeOwned>(value: &[u8]) -> Result<T, StoreError> {
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use http::{HeaderName, HeaderValue, StatusCode};

    use super::*;
    use crate::record::RecordedBody;

    #[test]
    fn summary_tells_what_the_whole_value_does() {
        let key = RecordKey::new("charges", None, "k");
        let headers = || vec![(HeaderName::from_static("x-charge"), HeaderValue::from_static(r#"{"fingerprint":""#))];
        let bodies =
            [RecordedBody::Whole("x".repeat(1000).into()), RecordedBody::Whole("".into()), RecordedBody::NotRecorded];
        for body in bodies.into_iter().chain([RecordedBody::Sealed("sealed".into())]) {
            let headers = if matches!(body, RecordedBody::Sealed(_)) { Vec::new() } else { headers() };
            let (fingerprint, now) = (Fingerprint::from_bytes([7; 32]), SystemTime::UNIX_EPOCH);
            let record = Record::new(StatusCode::CREATED, headers, body, fingerprint, now);
            let value = completed(Token::unique(), &record).expect("it is written");
            let (head, tail) =
                (&value.as_bytes()[..HEAD.min(value.len())], &value.as_bytes()[value.len().saturating_sub(TAIL)..]);
            let summary = summary(key.clone(), head, tail, 1000, 0).expect("it is whole");
            assert_eq!(summary, entry(key.clone(), value.as_bytes(), 1000, 0).expect("it is whole"));
            for cut in [value.len() - 1, value.len() - 80, 60] {
                let value = &value.as_bytes()[..cut];
                let (head, tail) = (&value[..HEAD.min(cut)], &value[cut.saturating_sub(TAIL)..]);
                assert!(super::summary(key.clone(), head, tail, 1000, 0).is_err(), "{cut}");
            }
        }
    }
}
