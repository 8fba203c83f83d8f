//! Writing and reading the usual text form of a record without a structure in between. A store does this for each request.
//!
//! The text is the one that [`Record`] serialises to. Whatever is not usual is left to `serde`.

use std::io::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderName, HeaderValue, StatusCode};
use memchr::memchr;

use crate::hexadecimal::write_hexadecimal;
use crate::record::{HeadersText, Record, RecordedBody, SEALED, VERSION, is_writable, whole_millis};

/// Adds the text of the record.
///
/// # Errors
///
/// If the text form does not support the record's time.
pub(crate) fn write(record: &Record, text: &mut Vec<u8>) -> serde_json::Result<()> {
    if !is_writable(record.recorded_at) {
        return serde_json::to_writer(text, record);
    }
    write!(text, r#"{{"version":{VERSION},"status":{},"headers":"#, record.status.as_u16())
        .map_err(serde_json::Error::io)?;
    write_headers(record, text)?;
    text.extend_from_slice(br#","body":"#);
    match record.body_bytes() {
        None => text.extend_from_slice(b"null"),
        Some(body) => {
            text.push(b'"');
            write_base64(body, text);
            text.push(b'"');
        }
    }
    text.extend_from_slice(br#","fingerprint":""#);
    write_hexadecimal(record.fingerprint.as_bytes(), text);
    let recorded_at = humantime::format_rfc3339_millis(record.recorded_at);
    write!(text, r#"","recorded_at":"{recorded_at}"}}"#).map_err(serde_json::Error::io)
}

fn write_headers(record: &Record, text: &mut Vec<u8>) -> serde_json::Result<()> {
    let is_plain =
        |value: &HeaderValue| !value.is_sensitive() && value.as_bytes().iter().copied().all(stands_for_itself);
    if matches!(record.body, RecordedBody::Sealed(_)) || !record.headers.iter().all(|(_, value)| is_plain(value)) {
        return serde_json::to_writer(text, &HeadersText::of(record));
    }
    text.push(b'[');
    for (number, (name, value)) in record.headers.iter().enumerate() {
        text.extend_from_slice(if number == 0 { br#"[""# } else { br#",[""# });
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(br#"",""#);
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(br#""]"#);
    }
    text.push(b']');
    Ok(())
}

fn write_base64(bytes: &[u8], text: &mut Vec<u8>) {
    let begin = text.len();
    text.resize(begin + bytes.len().div_ceil(3) * 4, 0);
    BASE64_STANDARD.encode_slice(bytes, &mut text[begin..]).expect("there are four characters for three bytes");
}

/// Returns whether the character is visible ASCII or a space, and JSON does not escape it.
fn stands_for_itself(character: u8) -> bool {
    matches!(character, b' '..=b'~') && !matches!(character, b'"' | b'\\')
}

/// Reads the text of a record if it is as [`write`] writes it. Returns `None` for a text that `serde` must read.
pub(crate) fn read(text: &[u8]) -> Option<Record> {
    let mut rest = Rest(text);
    rest.skip(br#"{"version":"#)?;
    let version = rest.number()?;
    rest.skip(br#","status":"#)?;
    let status = StatusCode::from_u16(rest.number()?.try_into().ok()?).ok()?;
    rest.skip(br#","headers":"#)?;
    let is_sealed = rest.0.first() == Some(&b'"');
    let headers = if is_sealed { Vec::new() } else { rest.headers()? };
    if is_sealed && rest.text()? != SEALED.as_bytes() {
        return None;
    }
    rest.skip(br#","body":"#)?;
    let body = match rest.0.first()? {
        b'"' => Some(from_base64(rest.text()?)?.into()),
        _ => rest.skip(b"null").map(|()| None)?,
    };
    rest.skip(br#","fingerprint":"#)?;
    let fingerprint = str::from_utf8(rest.text()?).ok()?.parse().ok()?;
    rest.skip(br#","recorded_at":"#)?;
    let recorded_at = str::from_utf8(rest.text()?).ok()?;
    let recorded_at = whole_millis(humantime::parse_rfc3339(recorded_at).ok()?);
    rest.skip(b"}")?;
    let body = match (body, is_sealed) {
        (Some(body), false) => RecordedBody::Whole(body),
        (Some(body), true) => RecordedBody::Sealed(body),
        (None, false) => RecordedBody::NotRecorded,
        (None, true) => return None,
    };
    let is_usual = version == u64::from(VERSION) && rest.0.is_empty();
    is_usual.then(|| Record::new(status, headers, body, fingerprint, recorded_at))
}

/// Decodes into a buffer of exactly the right size, which `Bytes` takes over as it is.
fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take_while(|character| **character == b'=').count();
    let mut bytes = vec![0; (text.len() / 4 * 3).checked_sub(padding)?];
    let decoded = BASE64_STANDARD.decode_slice(text, &mut bytes).ok()?;
    (decoded == bytes.len()).then_some(bytes)
}

/// The part of a text that was not read yet.
pub(crate) struct Rest<'a>(pub(crate) &'a [u8]);

impl<'a> Rest<'a> {
    pub(crate) fn skip(&mut self, word: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(word)?;
        Some(())
    }

    /// Reads a number as JSON writes it.
    pub(crate) fn number(&mut self) -> Option<u64> {
        let digits = self.0.iter().take_while(|digit| digit.is_ascii_digit()).count();
        let (number, rest) = self.0.split_at(digits);
        self.0 = rest;
        let has_leading_zero = digits > 1 && number[0] == b'0';
        if has_leading_zero { None } else { str::from_utf8(number).ok()?.parse().ok() }
    }

    /// Reads a string. The caller must reject one that contains a character which JSON escapes.
    pub(crate) fn text(&mut self) -> Option<&'a [u8]> {
        self.skip(br#"""#)?;
        let (text, rest) = self.0.split_at(memchr(b'"', self.0)?);
        self.0 = &rest[1..];
        Some(text)
    }

    fn headers(&mut self) -> Option<Vec<(HeaderName, HeaderValue)>> {
        let mut headers = Vec::new();
        self.skip(b"[")?;
        while self.skip(b"]").is_none() {
            if !headers.is_empty() {
                self.skip(b",")?;
            }
            self.skip(b"[")?;
            let name = HeaderName::from_bytes(self.text()?).ok()?;
            self.skip(b",")?;
            let value = self.text()?;
            if !value.iter().copied().all(stands_for_itself) {
                return None;
            }
            headers.push((name, HeaderValue::from_bytes(value).ok()?));
            self.skip(b"]")?;
        }
        Some(headers)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::fingerprint::Fingerprint;

    fn records() -> Vec<Record> {
        let mut sensitive = HeaderValue::from_static("4711");
        sensitive.set_sensitive(true);
        let values = ["", "plain text", "{\"a\\b\"}", "tab\there"].map(HeaderValue::from_static);
        let values = values.into_iter().chain([HeaderValue::from_bytes(b"\xff\xe9").expect("obs-text"), sensitive]);
        let lines: Vec<_> = values.map(|value| (HeaderName::from_static("x-charge"), value)).collect();
        let headers = (0..lines.len()).map(|number| vec![lines[number].clone()]).chain([vec![], lines.clone()]);
        let bodies = ["", "a", "ab", "abc", "\u{1F980}\"\\"].map(|body| RecordedBody::Whole(body.into()));
        let bodies = bodies.into_iter().chain([RecordedBody::NotRecorded]);
        let record = |headers: &Vec<_>, body| {
            let recorded_at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_000_000_123);
            Record::new(StatusCode::CREATED, headers.clone(), body, Fingerprint::from_bytes([0xa7; 32]), recorded_at)
        };
        let in_clear = headers.flat_map(|headers| bodies.clone().map(move |body| record(&headers, body)));
        in_clear.chain([record(&Vec::new(), RecordedBody::Sealed("sealed".into()))]).collect()
    }

    #[test]
    fn text_is_the_one_that_serde_writes_and_reads() {
        for record in records() {
            let mut text = Vec::new();
            write(&record, &mut text).expect("the time is writable");
            let expected = serde_json::to_string(&record).expect("the time is writable");
            assert_eq!(String::from_utf8_lossy(&text), expected);
            let is_usual =
                !expected.contains(['\\']) && !expected.contains("base64") && !expected.contains("sensitive");
            assert_eq!(read(&text), is_usual.then_some(record), "{expected}");
        }
    }

    #[test]
    fn changed_text_is_read_as_serde_reads_it_or_not_at_all() {
        for record in records() {
            let text = serde_json::to_vec(&record).expect("the time is writable");
            for place in 0..text.len() {
                for character in b"\"\\[]{},=0a \n\x7f\xff" {
                    let mut changed = text.clone();
                    changed[place] = *character;
                    let cut = [&text[..place], &text[place + 1..]].concat();
                    for text in [changed, cut] {
                        if let Some(record) = read(&text) {
                            assert_eq!(serde_json::from_slice::<Record>(&text).ok(), Some(record));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn time_that_the_text_cannot_tell_is_an_error() {
        let early = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        let record =
            Record::new(StatusCode::OK, vec![], RecordedBody::NotRecorded, Fingerprint::from_bytes([7; 32]), early);
        assert!(write(&record, &mut Vec::new()).is_err());
    }
}
