//! What holds for every record, key and fingerprint.

use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderName, HeaderValue, StatusCode};
use idempotent_runtime::{Fingerprint, IdempotencyKey, Record, RecordKey, RecordedBody};
use proptest::prelude::*;

fn header() -> impl Strategy<Value = (HeaderName, HeaderValue)> {
    let name =
        "[a-z0-9!#$%&'*+.^_`|~-]{1,20}".prop_map(|name| HeaderName::from_bytes(name.as_bytes()).expect("a token"));
    let allowed = prop_oneof![Just(b'\t'), 0x20..0x7f_u8, 0x80..=0xff_u8];
    let value = proptest::collection::vec(allowed, 0..40)
        .prop_map(|bytes| HeaderValue::from_bytes(&bytes).expect("every byte is allowed"));
    (name, value)
}

fn record() -> impl Strategy<Value = Record> {
    let body = prop_oneof![
        9 => proptest::collection::vec(any::<u8>(), 0..300).prop_map(|body| RecordedBody::Whole(body.into())),
        1 => Just(RecordedBody::NotRecorded),
        1 => proptest::collection::vec(any::<u8>(), 0..300).prop_map(|body| RecordedBody::Sealed(body.into())),
    ];
    // Until the year 9999, as RFC 3339 goes.
    let millis = 0..253_402_300_800_000_u64;
    (100..1000_u16, proptest::collection::vec(header(), 0..8), body, any::<[u8; 32]>(), millis).prop_map(
        |(status, headers, body, digest, millis)| Record {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: if matches!(body, RecordedBody::Sealed(_)) { Vec::new() } else { headers },
            body,
            fingerprint: Fingerprint::from_bytes(digest),
            recorded_at: UNIX_EPOCH + Duration::from_millis(millis),
        },
    )
}

fn part() -> impl Strategy<Value = String> {
    prop_oneof!["[ab/@%:2F]{0,6}", any::<String>()]
}

fn triple() -> impl Strategy<Value = (String, Option<String>, String)> {
    (part(), proptest::option::of(part()), part())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_record_survives_its_text_form(record in record()) {
        let text = serde_json::to_string(&record).expect("a record serialises");
        prop_assert_eq!(serde_json::from_str::<Record>(&text).expect("its text is read back"), record);
    }

    #[test]
    fn a_text_that_is_no_record_is_an_error_and_no_panic(text in any::<String>()) {
        prop_assert!(serde_json::from_str::<Record>(&text).is_err());
    }

    #[test]
    fn two_different_record_keys_never_share_a_text(a in triple(), b in triple()) {
        let key = |(scope, caller, key): &(String, Option<String>, String)| RecordKey::new(scope, caller.as_deref(), key);
        prop_assert_eq!(key(&a) == key(&b), a == b, "{:?} and {:?}", key(&a).as_str(), key(&b).as_str());
    }

    #[test]
    fn a_record_key_gives_its_parts_back((scope, caller, key) in triple()) {
        let record_key = RecordKey::new(&scope, caller.as_deref(), &key);
        prop_assert!(record_key.as_str().bytes().all(|byte| byte.is_ascii_graphic()), "{}", record_key.as_str());
        let parsed = RecordKey::parse(record_key.as_str()).expect("its own text");
        prop_assert_eq!((parsed.scope(), parsed.caller(), parsed.key()), (scope.into(), caller.map(Into::into), key.into()));
    }

    #[test]
    fn a_text_is_a_record_key_or_an_error(text in "[a@/%0-9F\u{0}é]{0,12}") {
        if let Ok(key) = RecordKey::parse(&text) {
            prop_assert_eq!(key.as_str(), text);
        }
    }

    #[test]
    fn a_fingerprint_survives_its_text(digest in any::<[u8; 32]>()) {
        let fingerprint = Fingerprint::from_bytes(digest);
        prop_assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
    }

    #[test]
    fn every_key_can_be_sent_quoted(key in "[ -~]{1,255}") {
        prop_assume!(!key.trim().is_empty());
        let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
        let header = HeaderValue::from_str(&quoted).expect("visible ASCII");
        let parsed = IdempotencyKey::from_header(&header);
        prop_assert_eq!(parsed.as_ref().map(IdempotencyKey::as_str), Ok(key.as_str()));
    }

    #[test]
    fn any_header_value_is_a_key_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(header) = HeaderValue::from_bytes(&bytes)
            && let Ok(key) = IdempotencyKey::from_header(&header)
        {
            prop_assert!((1..=255).contains(&key.as_str().len()));
            prop_assert!(key.as_str().bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }
}

#[test]
fn a_newer_or_damaged_record_is_refused_with_a_reason() {
    let whole = r#"{"version":1,"status":201,"headers":[["a","b"]],"body":"cGFpZA==","fingerprint":"0000000000000000000000000000000000000000000000000000000000000000","recorded_at":"2026-01-02T03:04:05.678Z"}"#;
    assert!(serde_json::from_str::<Record>(whole).is_ok());
    for (from, to, reason) in [
        ("\"version\":1", "\"version\":2", "version 2"),
        ("201", "99", "status"),
        ("cGFpZA==", "not base64", ""),
        ("00000000", "zz", "64 hexadecimal digits"),
        ("[\"a\"", "[\"a b\"", "header name"),
        ("\"b\"", "{\"base64\":\"Cg==\"}", "header value"),
        ("2026-01-02T", "yesterday", ""),
        ("\"headers\"", "\"haeders\"", "haeders"),
    ] {
        let error = serde_json::from_str::<Record>(&whole.replacen(from, to, 1)).expect_err(to).to_string();
        assert!(error.contains(reason), "{reason:?} in {error}");
    }
}
