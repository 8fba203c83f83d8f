//! The stored form of a sealed record: its key, its place, and its content.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::key::RecordKey;
use crate::record::{Record, RecordedBody};
use crate::store::error::StoreError;

/// The first bytes of each envelope. No text begins with them. They show that a body is sealed even if the record
/// claims that it is not.
const MAGIC: &[u8; 7] = b"\xffIDSEAL";

/// The header line with the envelope of a record without a response.
static SEAL: HeaderName = HeaderName::from_static("idempotency-seal");

/// The value of that line in a record that is not sealed, but whose body begins like an envelope.
static IN_CLEAR: HeaderValue = HeaderValue::from_static("none");

/// The place where a record is stored. A sealed record is bound to its place.
#[cfg_attr(not(feature = "seal"), expect(dead_code, reason = "without the feature, nothing is bound to it"))]
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The name of the store in the registry.
    pub(crate) store: &'a str,
    pub(crate) key: &'a RecordKey,
}

/// The content of a record after it was opened.
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

/// Returns the envelope of a sealed record. A record that is only partly sealed was changed, so it is damaged.
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

/// Returns the record as it is stored in clear, if it could be mistaken for a sealed one.
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

    /// The version of the sealed form. A reader rejects any other version.
    pub(crate) const VERSION: u8 = 2;

    pub(crate) fn seal_line(envelope: &[u8]) -> (HeaderName, HeaderValue) {
        let value = HeaderValue::from_str(&BASE64_STANDARD.encode(envelope)).expect("base64 is visible ASCII");
        (SEAL.clone(), value)
    }

    /// The sealed bytes, and the values that are needed to open them.
    pub(crate) struct Envelope<'a> {
        /// The id of the key.
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

    /// The sealed content of a record.
    pub(crate) struct Content {
        pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
        pub(crate) body: Bytes,
        /// The time at which the record expires, by the clock of the process that sealed it, in milliseconds since
        /// 1970. `lives_for` is the time for which it is recorded.
        expires_at: i64,
        lives_for: i64,
    }

    impl Content {
        /// Encodes the expiry, the header lines and the trailers, each after its length, and the body. Trailers are
        /// header lines, so the section for trailers is empty. It remains, because records that were sealed earlier
        /// have it, and a reader rejects a form that it does not know.
        ///
        /// A `ttl` that is not known counts as infinite.
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

        /// Returns whether the store has kept the record for longer than it should.
        ///
        /// The clocks of two machines differ, and a slow store keeps the record from a later moment on. For both, two
        /// seconds or a hundredth of the time are allowed.
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
