//! The client's key, and the text under which a store keeps it.

use http::HeaderValue;
use idempotent_runtime::{IdempotencyKey, InvalidKey, RecordKey};

use crate::source::Source;

/// The value of a header is a key, or an error that says why it is not. A key can be sent in quotes, and without quotes
/// if its characters allow it; both forms are the same key.
///
/// # Panics
///
/// When the invariant does not hold.
pub fn key_header(bytes: &[u8]) {
    let Ok(header) = HeaderValue::from_bytes(bytes) else { return };
    match IdempotencyKey::from_header(&header) {
        Ok(key) => {
            let text = key.as_str();
            assert!((1..=IdempotencyKey::MAX_LENGTH).contains(&text.len()), "{} characters", text.len());
            assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text:?}");
            assert!(!text.trim().is_empty(), "{text:?} is blank");
            assert_eq!(IdempotencyKey::new(text).as_ref(), Ok(&key));
            assert_eq!(read(&quoted(text)).as_ref(), Ok(&key), "quoted");
            if !text.contains([' ', '"', ',', ';', '\\']) {
                assert_eq!(read(text).as_ref(), Ok(&key), "bare");
            }
            if !bytes.trim_ascii().starts_with(b"\"") {
                assert_eq!(text.as_bytes(), bytes.trim_ascii(), "a bare key is what was sent");
            }
        }
        Err(InvalidKey::TooLong { length, .. }) => assert!(length > IdempotencyKey::MAX_LENGTH, "{length}"),
        Err(InvalidKey::SeveralHeaderLines) => panic!("there is one"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn read(text: &str) -> Result<IdempotencyKey, InvalidKey> {
    IdempotencyKey::from_header(&HeaderValue::from_str(text).expect("visible ASCII"))
}

/// Two record keys have the same text only if scope, caller and key are equal. A text is a record key or an error, and
/// never the text of another record key.
///
/// # Panics
///
/// When the invariant does not hold.
pub fn record_key(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(key) = text.parse::<RecordKey>()
    {
        assert_eq!(key.as_str(), text);
        assert_eq!(RecordKey::new(&key.scope(), key.caller().as_deref(), &key.key()), key);
    }

    let mut source = Source::new(bytes);
    let mut triple = || (source.text(), source.option(Source::text), source.text());
    let (one, other) = (triple(), triple());
    let [a, b] = [&one, &other].map(|(scope, caller, key)| {
        let record_key = RecordKey::new(scope, caller.as_deref(), key);
        assert!(record_key.as_str().bytes().all(|byte| byte.is_ascii_graphic()), "{:?}", record_key.as_str());
        assert_eq!(record_key.as_str().parse().as_ref(), Ok(&record_key));
        assert_eq!(record_key.scope(), scope.as_str());
        assert_eq!(record_key.caller().as_deref(), caller.as_deref());
        assert_eq!(record_key.key(), key.as_str());
        record_key
    });
    assert_eq!(one == other, a.as_str() == b.as_str(), "{one:?} and {other:?}");
}
