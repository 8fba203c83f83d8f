//! Properties of every record, key and fingerprint.

use http::HeaderValue;
use idempotent_runtime::store::{Claim, Token};
use idempotent_runtime::testing::decoders::{Row, Stored, redis_record, redis_value};
use idempotent_runtime::{Fingerprint, IdempotencyKey, Record, RecordKey};
use idempotent_tests::any::{YEAR_10000, record, time};
use proptest::prelude::*;

/// Generates any time, and often one near an end of the range of RFC 3339.
fn millis() -> impl Strategy<Value = i64> {
    prop_oneof![any::<i64>(), -2000..2000_i64, YEAR_10000 - 2000..YEAR_10000 + 2000]
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
    fn a_record_survives_its_value_in_redis(record in record(), token in any::<u128>()) {
        let value = redis_value(Token::from_u128(token), &record).expect("a record is written");
        prop_assert_eq!(redis_record(value.as_bytes()).expect("its own value"), Claim::Completed(record));
    }

    #[test]
    fn a_record_survives_the_columns_of_the_sql_stores(record in record(), millis in millis(), token in any::<u128>()) {
        let mut record = record;
        record.recorded_at = time(millis).unwrap_or(record.recorded_at);
        let row = Row::completed(Token::from_u128(token), &record);
        prop_assert_eq!(row.stored().expect("its own columns"), Stored::Completed(record));
    }

    #[test]
    fn time_that_the_text_cannot_tell_is_an_error(record in record(), millis in millis()) {
        let (Some(recorded_at), mut record) = (time(millis), record) else { return Ok(()) };
        record.recorded_at = recorded_at;
        let written = serde_json::to_string(&record);
        prop_assert_eq!(written.is_ok(), (0..YEAR_10000).contains(&millis), "{:?}", written);
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
    fn text_cut_at_another_place_is_another_record_key(
        text in "[a/@%F2]{0,8}",
        cuts in any::<[(prop::sample::Index, bool); 2]>(),
        others in any::<[(prop::sample::Index, bool); 2]>(),
    ) {
        let triple = |[(one, _), (other, has_caller)]: [(prop::sample::Index, bool); 2]| {
            let (one, other) = (one.index(text.len() + 1), other.index(text.len() + 1));
            let (from, to) = (one.min(other), one.max(other));
            let caller = (has_caller || from < to).then_some(&text[from..to]);
            (&text[..from], caller, &text[to..])
        };
        let (a, b) = (triple(cuts), triple(others));
        let record_key = |(scope, caller, key): (&str, Option<&str>, &str)| RecordKey::new(scope, caller, key);
        prop_assert_eq!(record_key(a).as_str() == record_key(b).as_str(), a == b, "{:?} and {:?}", a, b);
    }

    #[test]
    fn a_record_key_gives_its_parts_back((scope, caller, key) in triple()) {
        let record_key = RecordKey::new(&scope, caller.as_deref(), &key);
        prop_assert!(record_key.as_str().bytes().all(|byte| byte.is_ascii_graphic()), "{}", record_key.as_str());
        let parsed: RecordKey = record_key.as_str().parse().expect("its own text");
        prop_assert_eq!((parsed.scope(), parsed.caller(), parsed.key()), (scope.into(), caller.map(Into::into), key.into()));
    }

    #[test]
    fn a_text_is_a_record_key_or_an_error(text in "[a@/%0-9F\u{0}é]{0,12}") {
        if let Ok(key) = text.parse::<RecordKey>() {
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
fn a_newer_or_damaged_record_is_rejected_with_a_reason() {
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
