//! The fingerprint of a body, which does not depend on the boundary of a multipart body.

use http::{HeaderMap, HeaderValue, header};
use idempotent_runtime::Fingerprint;
use idempotent_runtime::testing::decoders::body_fingerprint;

use crate::source::Source;

/// The same parts with another boundary have the same fingerprint. Other parts, other bytes under the same header, or
/// another media type have a different one.
///
/// # Panics
///
/// When the invariant does not hold.
pub fn multipart(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let boundaries = [boundary(&mut source), boundary(&mut source)];
    let [parts, others] = [(); 2].map(|()| (0..source.byte() % 4).map(|_| source.bytes()).collect::<Vec<_>>());
    // A delimiter inside a line is ordinary content. At the start of a line it is a delimiter, and then the boundary
    // matters.
    let is_content = |part: &&[u8]| {
        let lines = [b"\n", *part].concat();
        boundaries.iter().all(|boundary| !contains(&lines, &format!("\n--{boundary}")))
    };
    if parts.iter().chain(&others).all(is_content) {
        let [first, second] = boundaries.each_ref().map(|boundary| of_parts(boundary, &parts));
        assert_eq!(first, second, "{parts:?} behind {boundaries:?}");
        for boundary in &boundaries {
            assert_eq!(of_parts(boundary, &others) == first, others == parts, "{others:?} and {parts:?}");
        }
    }

    let content_type = source.bytes();
    let (body, other) = (source.bytes(), source.rest());
    let fingerprint = |body| of_body(content_type, body);
    assert_eq!(fingerprint(body) == fingerprint(other), body == other, "{body:?} and {other:?}");
    if !contains(&content_type.to_ascii_lowercase(), "text/plain") {
        assert_ne!(fingerprint(body), of_body(b"text/plain", body), "the media type counts");
    }
}

/// A boundary that every client may choose without quotes (RFC 2046, section 5.1.1; RFC 9110, section 5.6.2).
fn boundary(source: &mut Source<'_>) -> String {
    const CHARACTERS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_+.'";
    let drawn = source.bytes().iter().take(70);
    let text: String = drawn.map(|byte| char::from(CHARACTERS[usize::from(*byte) % CHARACTERS.len()])).collect();
    if text.is_empty() { "0".to_owned() } else { text }
}

fn of_parts(boundary: &str, parts: &[&[u8]]) -> Fingerprint {
    let mut body = Vec::new();
    for part in parts {
        body.extend_from_slice(format!("--{boundary}\r\n").as_bytes());
        body.extend_from_slice(part);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    of_body(format!("multipart/form-data; boundary={boundary}").as_bytes(), &body)
}

fn of_body(content_type: &[u8], body: &[u8]) -> Fingerprint {
    let mut headers = HeaderMap::new();
    if let Ok(content_type) = HeaderValue::from_bytes(content_type) {
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    body_fingerprint(&headers, body)
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
