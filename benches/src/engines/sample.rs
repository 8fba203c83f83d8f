//! The claims and records of every measurement.

use std::time::{Duration, SystemTime};

use axum::http::{HeaderValue, StatusCode, header};
use bytes::Bytes;
use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, Held, Store, Token};
use idempotent_runtime::{Fingerprint, Record, RecordKey, RecordedBody};

use crate::scenario::key;

/// How long everything is kept: longer than a measurement takes.
pub const TTL: Duration = Duration::from_hours(24);

/// The key with this number.
pub fn record_key(number: usize) -> RecordKey {
    RecordKey::new("charges", Some("cus_9s6XKzkNRiz8i3"), &key(number >> 32, number & 0xffff_ffff))
}

/// A claim with the attribute's defaults.
pub fn request() -> ClaimRequest {
    ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([7; 32]))
        .with_lease(Duration::from_secs(30))
        .with_ttl(TTL)
        .with_after_crash(AfterCrash::Rerun)
}

/// A created charge: two headers, 300 bytes of JSON.
pub fn record() -> Record {
    Record::new(
        StatusCode::CREATED,
        vec![
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (header::LOCATION, HeaderValue::from_static("/charges/ch_3MmlLrLkdIwHu7ix0snN0B15")),
        ],
        RecordedBody::Whole(body()),
        Fingerprint::from_bytes([7; 32]),
        SystemTime::now(),
    )
}

/// The body of [`record`].
pub fn body() -> Bytes {
    const MEMO: &str = r#"{"id":"ch_3MmlLrLkdIwHu7ix0snN0B15","status":"succeeded","memo":""}"#;
    let (before, after) = MEMO.split_at(MEMO.len() - 2);
    format!("{before}{}{after}", "m".repeat(300 - MEMO.len())).into()
}

/// A first execution: claims a fresh key, and completes it.
///
/// # Panics
///
/// When the store answers anything but yes, because a wrong answer must not be measured.
pub async fn execute(store: &impl Store, number: usize) {
    let (key, request) = (record_key(number), request());
    let claim = store.claim(&key, request).await.expect("the store claims");
    assert_eq!(claim, Claim::Acquired { attempt: 1 });
    let held = store.complete(&key, request.token, record(), TTL).await.expect("the store completes");
    assert_eq!(held, Held::Yes);
}

/// A replay: claims a completed key.
///
/// # Panics
///
/// When the store has no record.
pub async fn replay(store: &impl Store, number: usize) {
    let claim = store.claim(&record_key(number), request()).await.expect("the store answers");
    assert!(matches!(claim, Claim::Completed(_)), "{claim:?}");
}
