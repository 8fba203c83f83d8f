//! Generators of arbitrary records, for property tests.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderName, HeaderValue, StatusCode};
use idempotent_runtime::{Fingerprint, Record, RecordedBody};
use proptest::prelude::*;

/// The first moment that RFC 3339 cannot express, in milliseconds since 1970.
pub const YEAR_10000: i64 = 253_402_300_800_000;

/// Any response that `http` allows, recorded at any time that RFC 3339 can express.
///
/// # Panics
///
/// Never.
pub fn record() -> impl Strategy<Value = Record> {
    let body = prop_oneof![
        9 => proptest::collection::vec(any::<u8>(), 0..300).prop_map(|body| RecordedBody::Whole(body.into())),
        1 => Just(RecordedBody::NotRecorded),
        1 => proptest::collection::vec(any::<u8>(), 0..300).prop_map(|body| RecordedBody::Sealed(body.into())),
    ];
    let millis = 0..YEAR_10000.unsigned_abs();
    (100..1000_u16, proptest::collection::vec(header(), 0..8), body, any::<[u8; 32]>(), millis).prop_map(
        |(status, headers, body, digest, millis)| {
            Record::new(
                StatusCode::from_u16(status).expect("a status"),
                if matches!(body, RecordedBody::Sealed(_)) { Vec::new() } else { headers },
                body,
                Fingerprint::from_bytes(digest),
                UNIX_EPOCH + Duration::from_millis(millis),
            )
        },
    )
}

fn header() -> impl Strategy<Value = (HeaderName, HeaderValue)> {
    let name =
        "[a-z0-9!#$%&'*+.^_`|~-]{1,20}".prop_map(|name| HeaderName::from_bytes(name.as_bytes()).expect("a token"));
    let allowed = prop_oneof![Just(b'\t'), 0x20..0x7f_u8, 0x80..=0xff_u8];
    let value = proptest::collection::vec(allowed, 0..40)
        .prop_map(|bytes| HeaderValue::from_bytes(&bytes).expect("every byte is allowed"));
    (name, value)
}

/// The time so many milliseconds after 1970 (before it, if negative), if this machine's clock can represent it.
pub fn time(unix_millis: i64) -> Option<SystemTime> {
    let distance = Duration::from_millis(unix_millis.unsigned_abs());
    if unix_millis < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) }
}
