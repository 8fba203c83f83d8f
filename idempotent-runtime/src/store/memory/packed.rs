//! A completed request in one piece of memory: with ten million of them, what each costs beside its payload counts.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use crate::store::Token;
use crate::{Fingerprint, Record, RecordKey, RecordedBody};

/// Bodies from this length on stand apart, so that a replay shares them instead of copying.
const LARGE_BODY: usize = 4 * 1024;

/// The fixed fields, then the key, the header lines and a small body.
pub(super) struct Packed(Box<[u8]>);

/// Where the fields lie.
mod field {
    use std::ops::Range;

    pub(super) const TOKEN: Range<usize> = 0..16;
    pub(super) const FINGERPRINT: Range<usize> = 16..48;
    pub(super) const EXPIRES_AT: Range<usize> = 48..56;
    pub(super) const RECORDED_AT: Range<usize> = 56..64;
    pub(super) const KEY_LENGTH: Range<usize> = 64..68;
    pub(super) const HEADERS_LENGTH: Range<usize> = 68..72;
    pub(super) const STATUS: Range<usize> = 72..74;
    pub(super) const BODY: usize = 74;
    pub(super) const END: usize = 75;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum BodyKind {
    Whole,
    NotRecorded,
    Sealed,
}

impl Packed {
    /// The record, and its body if that stands apart.
    pub(super) fn new(key: &RecordKey, token: Token, record: &Record, expires_at: Duration) -> (Self, Option<Bytes>) {
        let key = key.as_str().as_bytes();
        let texts = || record.headers.iter().flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]);
        let headers_length = texts().map(|text| size_of::<u32>() + text.len()).sum();
        let (kind, body) = match &record.body {
            RecordedBody::Whole(body) => (BodyKind::Whole, &**body),
            RecordedBody::Sealed(body) => (BodyKind::Sealed, &**body),
            RecordedBody::NotRecorded => (BodyKind::NotRecorded, &[][..]),
        };
        let is_apart = body.len() >= LARGE_BODY;
        let within = if is_apart { &[] } else { body };
        let recorded_at = record.recorded_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let mut bytes = Vec::with_capacity(field::END + key.len() + headers_length + within.len());
        bytes.extend_from_slice(&token.as_u128().to_le_bytes());
        bytes.extend_from_slice(record.fingerprint.as_bytes());
        bytes.extend_from_slice(&u64::try_from(expires_at.as_nanos()).unwrap_or(u64::MAX).to_le_bytes());
        bytes.extend_from_slice(&u64::try_from(recorded_at).unwrap_or(u64::MAX).to_le_bytes());
        bytes.extend_from_slice(&length(key.len()).to_le_bytes());
        bytes.extend_from_slice(&length(headers_length).to_le_bytes());
        bytes.extend_from_slice(&record.status.as_u16().to_le_bytes());
        bytes.push(kind as u8);
        bytes.extend_from_slice(key);
        for text in texts() {
            bytes.extend_from_slice(&length(text.len()).to_le_bytes());
            bytes.extend_from_slice(text);
        }
        bytes.extend_from_slice(within);
        // A copy: a slice would keep the whole buffer alive that it was cut from.
        (Self(bytes.into()), is_apart.then(|| Bytes::copy_from_slice(body)))
    }

    /// The record again; `apart` is the body that [`Packed::new`] gave back.
    pub(super) fn record(&self, apart: Option<&Bytes>) -> Record {
        let (mut lines, within) = self.after_key().split_at(self.length(field::HEADERS_LENGTH));
        let mut headers = Vec::new();
        while !lines.is_empty() {
            let (name, rest) = take(lines);
            let (value, rest) = take(rest);
            lines = rest;
            let name = HeaderName::from_bytes(name).expect("it was packed from a name");
            headers.push((name, HeaderValue::from_bytes(value).expect("it was packed from a value")));
        }
        let body = || apart.map_or_else(|| Bytes::copy_from_slice(within), Bytes::clone);
        Record {
            status: self.status(),
            headers,
            body: match self.body_kind() {
                BodyKind::Whole => RecordedBody::Whole(body()),
                BodyKind::Sealed => RecordedBody::Sealed(body()),
                BodyKind::NotRecorded => RecordedBody::NotRecorded,
            },
            fingerprint: self.fingerprint(),
            recorded_at: self.recorded_at(),
        }
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.0[field::END..field::END + self.length(field::KEY_LENGTH)]
    }

    /// What of it is not the same for all: the key, the header lines and a small body.
    pub(super) fn variable_bytes(&self) -> usize {
        self.0.len() - field::END
    }

    pub(super) fn token(&self) -> Token {
        Token::from_u128(u128::from_le_bytes(self.array(field::TOKEN)))
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::from_bytes(self.array(field::FINGERPRINT))
    }

    /// Since the store began.
    pub(super) fn expires_at(&self) -> Duration {
        Duration::from_nanos(self.number(field::EXPIRES_AT))
    }

    pub(super) fn recorded_at(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.number(field::RECORDED_AT))
    }

    /// The length of the recorded body, if it was recorded.
    pub(super) fn body_length(&self, apart: Option<&Bytes>) -> Option<u64> {
        let within = || self.after_key().len() - self.length(field::HEADERS_LENGTH);
        (self.body_kind() != BodyKind::NotRecorded).then(|| apart.map_or_else(within, Bytes::len) as u64)
    }

    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(u16::from_le_bytes(self.array(field::STATUS))).expect("it was packed from a status")
    }

    fn body_kind(&self) -> BodyKind {
        let kinds = [BodyKind::Whole, BodyKind::NotRecorded, BodyKind::Sealed];
        kinds.into_iter().find(|&kind| kind as u8 == self.0[field::BODY]).expect("it was packed from a kind")
    }

    fn after_key(&self) -> &[u8] {
        &self.0[field::END + self.length(field::KEY_LENGTH)..]
    }

    fn length(&self, field: Range<usize>) -> usize {
        u32::from_le_bytes(self.array(field)) as usize
    }

    fn number(&self, field: Range<usize>) -> u64 {
        u64::from_le_bytes(self.array(field))
    }

    fn array<const N: usize>(&self, field: Range<usize>) -> [u8; N] {
        self.0[field].try_into().expect("a field is as long as its type")
    }
}

/// Names, values and keys; a large body stands apart.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("no header and no key has four gigabytes")
}

/// What a length stands before, and what comes after it.
fn take(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = bytes.split_first_chunk().expect("a length stands before each text");
    rest.split_at(u32::from_le_bytes(*length) as usize)
}
