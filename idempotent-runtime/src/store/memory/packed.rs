//! A record in one piece of memory. With ten million records, the cost of each beside its payload matters.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::record::{Record, RecordedBody};
use crate::store::claim::Token;
use crate::store::memory::shares::Share;

/// The length from which on a body has its own allocation, so that a replay shares it instead of copying it.
const LARGE_BODY: usize = 4 * 1024;

/// The fixed fields, the lengths of the key and of the header lines, the key, the header lines, and a small body. The
/// lowest bit of a header value's length says whether the value is sensitive.
pub(super) struct Packed(Box<[u8]>);

/// The positions of the fixed fields.
mod field {
    use std::ops::Range;

    pub(super) const TOKEN: Range<usize> = 0..16;
    pub(super) const FINGERPRINT: Range<usize> = 16..48;
    pub(super) const EXPIRES_AT: Range<usize> = 48..56;
    pub(super) const RECORDED_AT: Range<usize> = 56..64;
    pub(super) const SHARE: Range<usize> = 64..72;
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
    /// Packs a record. Returns the body apart if it has its own allocation.
    pub(super) fn new(
        key: &RecordKey,
        token: Token,
        share: Share,
        record: &Record,
        expires_at: Duration,
    ) -> (Self, Option<Bytes>) {
        let key = key.as_str().as_bytes();
        let texts = || {
            record.headers.iter().flat_map(|(name, value)| {
                let (name, value, is_sensitive) = (name.as_str().as_bytes(), value.as_bytes(), value.is_sensitive());
                [(name.len(), name), (value.len() << 1 | usize::from(is_sensitive), value)]
            })
        };
        let headers_length = texts().map(|(length, text)| length_of(length) + text.len()).sum();
        let (kind, body) = match &record.body {
            RecordedBody::Whole(body) => (BodyKind::Whole, &**body),
            RecordedBody::Sealed(body) => (BodyKind::Sealed, &**body),
            RecordedBody::NotRecorded => (BodyKind::NotRecorded, &[][..]),
        };
        let is_apart = body.len() >= LARGE_BODY;
        let within = if is_apart { &[] } else { body };
        let recorded_at = record.recorded_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let lengths = length_of(key.len()) + length_of(headers_length);
        let mut bytes = Vec::with_capacity(field::END + lengths + key.len() + headers_length + within.len());
        bytes.extend_from_slice(&token.as_u128().to_le_bytes());
        bytes.extend_from_slice(record.fingerprint.as_bytes());
        bytes.extend_from_slice(&u64::try_from(expires_at.as_nanos()).unwrap_or(u64::MAX).to_le_bytes());
        bytes.extend_from_slice(&u64::try_from(recorded_at).unwrap_or(u64::MAX).to_le_bytes());
        bytes.extend_from_slice(&share.as_u64().to_le_bytes());
        bytes.extend_from_slice(&record.status.as_u16().to_le_bytes());
        bytes.push(kind as u8);
        push_length(&mut bytes, key.len());
        push_length(&mut bytes, headers_length);
        bytes.extend_from_slice(key);
        for (length, text) in texts() {
            push_length(&mut bytes, length);
            bytes.extend_from_slice(text);
        }
        bytes.extend_from_slice(within);
        // A slice would keep alive the whole buffer that it is part of.
        let apart = || match &record.body {
            RecordedBody::Whole(body) if record.alone.is_some_and(|alone| alone.is(body)) => body.clone(),
            _ => Bytes::copy_from_slice(body),
        };
        (Self(bytes.into()), is_apart.then(apart))
    }

    /// Unpacks the record. `apart` is the body that [`Packed::new`] returned apart.
    pub(super) fn record(&self, apart: Option<&Bytes>) -> Record {
        let [_, mut lines, within] = self.parts();
        let mut headers = Vec::new();
        while !lines.is_empty() {
            let (name, rest) = take(lines);
            let (marked_length, rest) = take_length(rest);
            let (value, rest) = rest.split_at(marked_length >> 1);
            lines = rest;
            let name = HeaderName::from_bytes(name).expect("it was packed from a name");
            let mut value = HeaderValue::from_bytes(value).expect("it was packed from a value");
            value.set_sensitive(marked_length & 1 == 1);
            headers.push((name, value));
        }
        let body = || apart.map_or_else(|| Bytes::copy_from_slice(within), Bytes::clone);
        let body = match self.body_kind() {
            BodyKind::Whole => RecordedBody::Whole(body()),
            BodyKind::Sealed => RecordedBody::Sealed(body()),
            BodyKind::NotRecorded => RecordedBody::NotRecorded,
        };
        Record::new(self.status(), headers, body, self.fingerprint(), self.recorded_at())
    }

    pub(super) fn key(&self) -> &[u8] {
        self.parts()[0]
    }

    /// Returns the length of the parts that vary: the key, the header lines and a small body.
    pub(super) fn variable_bytes(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }

    pub(super) fn token(&self) -> Token {
        Token::from_u128(u128::from_le_bytes(self.array(field::TOKEN)))
    }

    /// Returns the share that the record counts for.
    pub(super) fn share(&self) -> Share {
        Share::from_u64(self.number(field::SHARE))
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::from_bytes(self.array(field::FINGERPRINT))
    }

    pub(super) fn expire_at(&mut self, moment: Duration) {
        let nanos = u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX);
        self.0[field::EXPIRES_AT].copy_from_slice(&nanos.to_le_bytes());
    }

    /// Returns the time of the expiry since the store began.
    pub(super) fn expires_at(&self) -> Duration {
        Duration::from_nanos(self.number(field::EXPIRES_AT))
    }

    pub(super) fn recorded_at(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.number(field::RECORDED_AT))
    }

    /// Returns the length of the recorded body, if it was recorded.
    pub(super) fn body_length(&self, apart: Option<&Bytes>) -> Option<u64> {
        let within = || self.parts()[2].len();
        (self.body_kind() != BodyKind::NotRecorded).then(|| apart.map_or_else(within, Bytes::len) as u64)
    }

    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(u16::from_le_bytes(self.array(field::STATUS))).expect("it was packed from a status")
    }

    fn body_kind(&self) -> BodyKind {
        let kinds = [BodyKind::Whole, BodyKind::NotRecorded, BodyKind::Sealed];
        kinds.into_iter().find(|&kind| kind as u8 == self.0[field::BODY]).expect("it was packed from a kind")
    }

    /// Returns the key, the header lines and a small body.
    fn parts(&self) -> [&[u8]; 3] {
        let (key_length, rest) = take_length(&self.0[field::END..]);
        let (headers_length, rest) = take_length(rest);
        let (key, rest) = rest.split_at(key_length);
        let (headers, body) = rest.split_at(headers_length);
        [key, headers, body]
    }

    fn number(&self, field: Range<usize>) -> u64 {
        u64::from_le_bytes(self.array(field))
    }

    fn array<const N: usize>(&self, field: Range<usize>) -> [u8; N] {
        self.0[field].try_into().expect("a field is as long as its type")
    }
}

/// Writes seven bits a byte, the lower ones first. All bytes but the last one have the eighth bit set. Most lengths
/// take one byte.
fn push_length(bytes: &mut Vec<u8>, mut length: usize) {
    loop {
        let [low, ..] = length.to_le_bytes();
        length >>= 7;
        if length == 0 {
            return bytes.push(low);
        }
        bytes.push(low | 0x80);
    }
}

/// Returns the number of bytes that [`push_length`] writes.
fn length_of(length: usize) -> usize {
    let bits = usize::BITS - length.leading_zeros();
    bits.div_ceil(7).max(1) as usize
}

/// Splits the bytes into the length at the beginning and the rest.
fn take_length(bytes: &[u8]) -> (usize, &[u8]) {
    let last = bytes.iter().position(|byte| byte & 0x80 == 0).expect("a length ends");
    let (length, rest) = bytes.split_at(last + 1);
    (length.iter().rev().fold(0, |sum, byte| sum << 7 | usize::from(byte & 0x7f)), rest)
}

/// Reads a length. Returns that many bytes after it, and the rest.
fn take(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = take_length(bytes);
    rest.split_at(length)
}
