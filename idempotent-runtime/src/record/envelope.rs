//! What is stored of a sealed record: which key has sealed it, where it is stored, and what it contains.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::key::RecordKey;
use crate::record::{Record, RecordedBody};
use crate::store::error::StoreError;

/// How each envelope begins. No text does so: a sealed body is recognised where the record says that it is none.
const MAGIC: &[u8; 7] = b"\xffIDSEAL";

/// The header line with the envelope of a record without a response.
static SEAL: HeaderName = HeaderName::from_static("idempotency-seal");

/// In the line of a record that is not sealed, and whose body begins as an envelope does.
static IN_CLEAR: HeaderValue = HeaderValue::from_static("none");

/// Where a record is stored. A sealed record is bound to it.
#[cfg_attr(not(feature = "seal"), expect(dead_code, reason = "without the feature, nothing is bound to it"))]
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The store's name in the registry.
    pub(crate) store: &'a str,
    pub(crate) key: &'a RecordKey,
}

/// What is left to replay.
pub(crate) enum Opened {
    Whole(Vec<(HeaderName, HeaderValue)>, Bytes),
    NotRecorded,
}

impl Opened {
    pub(crate) fn in_clear(record: Record) -> Self {
        match record.body {
            RecordedBody::Whole(body) => Self::Whole(record.headers, body),
            RecordedBody::NotRecorded | RecordedBody::Sealed(_) => Self::NotRecorded,
        }
    }
}

/// The envelope of a record that is sealed. One that is sealed in part was changed.
pub(crate) fn envelope_of(record: &Record) -> Result<Option<Bytes>, StoreError> {
    let line = record.headers.iter().find_map(|(name, value)| (name == SEAL).then_some(value));
    match (&record.body, line) {
        (RecordedBody::Sealed(envelope), _) => Ok(Some(envelope.clone())),
        (RecordedBody::NotRecorded, Some(line)) => match BASE64_STANDARD.decode(line) {
            Ok(envelope) => Ok(Some(envelope.into())),
            Err(_) => Err(StoreError::damaged("the seal of the record is not base64")),
        },
        (RecordedBody::Whole(body), Some(line)) if *line == IN_CLEAR && body.starts_with(MAGIC) => Ok(None),
        (RecordedBody::Whole(body), line) if line.is_some() || body.starts_with(MAGIC) => {
            Err(StoreError::damaged("the record says that it is not sealed, and has a seal"))
        }
        (RecordedBody::NotRecorded, None) | (RecordedBody::Whole(_), _) => Ok(None),
    }
}

/// The record as it is stored in clear, if it could be taken for a sealed one.
pub(super) fn in_clear(record: &Record) -> Option<Record> {
    let is_mistakable = matches!(&record.body, RecordedBody::Whole(body) if body.starts_with(MAGIC));
    is_mistakable.then(|| {
        let mut record = record.clone();
        record.headers.push((SEAL.clone(), IN_CLEAR.clone()));
        record
    })
}

#[cfg(feature = "seal")]
pub(crate) use self::sealed::{Content, Envelope, VERSION, seal_line};

#[cfg(feature = "seal")]
mod sealed {
    use std::time::{Duration, SystemTime};

    use base64::Engine as _;

    use super::{BASE64_STANDARD, Bytes, HeaderName, HeaderValue, MAGIC, Record, SEAL, StoreError};
    use crate::record::{HeaderLines, unix_millis};

    /// The form of what is sealed; a reader rejects any other.
    pub(crate) const VERSION: u8 = 2;

    pub(crate) fn seal_line(envelope: &[u8]) -> (HeaderName, HeaderValue) {
        let value = HeaderValue::from_str(&BASE64_STANDARD.encode(envelope)).expect("base64 is visible ASCII");
        (SEAL.clone(), value)
    }

    /// The sealed bytes and what it takes to open them.
    pub(crate) struct Envelope<'a> {
        /// Of the key.
        pub(crate) id: [u8; 8],
        pub(crate) nonce: [u8; 24],
        pub(crate) sealed: &'a [u8],
    }

    impl<'a> Envelope<'a> {
        pub(crate) fn write(&self) -> Bytes {
            [MAGIC.as_slice(), &[VERSION], &self.id, &self.nonce, self.sealed].concat().into()
        }

        pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, StoreError> {
            let versioned = bytes.strip_prefix(MAGIC);
            let (version, rest) = versioned.and_then(|bytes| bytes.split_first()).ok_or_else(not_whole)?;
            if *version != VERSION {
                return Err(StoreError::damaged(format_args!(
                    "the sealed record has version {version}, this library reads version {VERSION}"
                )));
            }
            let (id, rest) = rest.split_first_chunk().ok_or_else(not_whole)?;
            let (nonce, sealed) = rest.split_first_chunk().ok_or_else(not_whole)?;
            Ok(Self { id: *id, nonce: *nonce, sealed })
        }
    }

    fn not_whole() -> StoreError {
        StoreError::damaged("the sealed record is not whole")
    }

    /// What is sealed of a record.
    pub(crate) struct Content {
        pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
        pub(crate) body: Bytes,
        /// When the record expires, by the clock of the process that sealed it, in milliseconds since 1970; and for how long it is
        /// recorded.
        expires_at: i64,
        lives_for: i64,
    }

    impl Content {
        /// The expiry, the header lines and the trailers, each after its length, and the body. Trailers are header lines, so that their
        /// own section is empty. It stays: records that were sealed before have it, and a reader rejects one that it does not know.
        ///
        /// A `ttl` that is not known is one without an end.
        pub(crate) fn encode(record: &Record, ttl: Option<Duration>) -> Option<Vec<u8>> {
            let expires_at = ttl.and_then(|ttl| SystemTime::now().checked_add(ttl)).map_or(i64::MAX, unix_millis);
            let headers = serde_json::to_vec(&HeaderLines(record.headers.clone())).ok()?;
            let trailers: &[u8] = &[];
            let body = record.body_bytes().map_or(&[][..], |body| body);
            let mut content = Vec::with_capacity(16 + headers.len() + trailers.len() + body.len());
            content.extend(expires_at.to_be_bytes());
            for section in [&*headers, trailers] {
                content.extend(u32::try_from(section.len()).ok()?.to_be_bytes());
                content.extend(section);
            }
            content.extend_from_slice(body);
            Some(content)
        }

        pub(crate) fn decode(content: Bytes, recorded_at: SystemTime) -> Result<Self, StoreError> {
            let mut rest = content;
            let expires_at = i64::from_be_bytes(*take(&mut rest, 8)?.first_chunk().ok_or_else(not_whole)?);
            let HeaderLines(headers) = serde_json::from_slice(&section(&mut rest)?).map_err(|_| not_whole())?;
            if !section(&mut rest)?.is_empty() {
                return Err(StoreError::damaged(
                    "the sealed record has trailers, which this library cannot read: update `idempotent-runtime`",
                ));
            }
            Ok(Self { headers, body: rest, expires_at, lives_for: expires_at.saturating_sub(unix_millis(recorded_at)) })
        }

        /// Whether its store has kept the record for longer than it was told to.
        ///
        /// The clocks of two machines differ, and a store that is slow keeps the record from a later moment on: two seconds, or a
        /// hundredth of the time, are allowed for both.
        pub(crate) fn is_expired(&self, now: SystemTime) -> bool {
            const TWO_SECONDS: i64 = 2000;
            unix_millis(now).saturating_sub(self.expires_at) > (self.lives_for / 100).max(TWO_SECONDS)
        }
    }

    fn section(rest: &mut Bytes) -> Result<Bytes, StoreError> {
        let length = take(rest, 4)?.first_chunk().map(|length| u32::from_be_bytes(*length));
        take(rest, length.ok_or_else(not_whole)? as usize)
    }

    fn take(rest: &mut Bytes, length: usize) -> Result<Bytes, StoreError> {
        if length <= rest.len() { Ok(rest.split_to(length)) } else { Err(not_whole()) }
    }
}
