//! The stored response, and its text form, which an operator can read.

pub(crate) mod alone;
pub(crate) mod envelope;
pub(crate) mod fingerprints;
pub(crate) mod headers;
pub(crate) mod protection;
#[cfg(feature = "seal")]
pub(crate) mod sealing;
#[cfg(feature = "redis")]
pub(crate) mod text;
pub(crate) mod trailers;

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::fingerprint::Fingerprint;
use crate::record::alone::Alone;

/// A completed request: the response that its retries get.
///
/// A record serialises to JSON that a person can read, with the body in base64:
///
/// ```
/// # use std::time::SystemTime;
/// # use bytes::Bytes;
/// # use http::{HeaderValue, StatusCode, header};
/// use idempotent_runtime::{Fingerprint, Record, RecordedBody};
///
/// let record = Record::new(
///     StatusCode::CREATED,
///     vec![(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))],
///     RecordedBody::Whole(Bytes::from_static(b"paid")),
///     Fingerprint::from_bytes([7; 32]),
///     SystemTime::UNIX_EPOCH,
/// );
/// let text = serde_json::to_string(&record)?;
/// assert!(text.contains(r#""status":201,"headers":[["content-type","text/plain"]],"body":"cGFpZA==""#));
/// assert_eq!(serde_json::from_str::<Record>(&text)?, record);
/// # Ok::<(), serde_json::Error>(())
/// ```
/// `Debug` shows the size of the content, and nothing of the content.
#[derive(Clone)]
#[non_exhaustive]
pub struct Record {
    /// The status of the response.
    pub status: StatusCode,
    /// The recorded headers, line by line, in the order in which they were sent. If the handler ran in a trace, its
    /// `traceparent` follows in the line `idempotency-recorded-by`, which is not replayed. Each trailer of the response
    /// follows in a line `idempotency-recorded-trailer` as `name: value`, and is replayed as a trailer. A store must
    /// keep which values are sensitive, as the text form of a record does.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: RecordedBody,
    /// The fingerprint of the request.
    pub fingerprint: Fingerprint,
    /// The time at which the handler answered, in whole milliseconds by the clock of the process that ran it. The text
    /// form supports the years 1970 to 9999, and fails for any other.
    pub recorded_at: SystemTime,
    /// The body whose buffer contains nothing else, so that a store in memory can keep it without a copy.
    #[cfg_attr(
        not(any(feature = "memory", feature = "near-cache")),
        expect(dead_code, reason = "no store keeps records in memory")
    )]
    pub(crate) alone: Option<Alone>,
}

/// Compares what is recorded, and not how it lies in memory.
impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.status == other.status
            && self.headers == other.headers
            && self.body == other.body
            && self.fingerprint == other.fingerprint
            && self.recorded_at == other.recorded_at
    }
}

impl Eq for Record {}

/// The body of a completed request. `Debug` shows only its length.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordedBody {
    /// The whole body.
    Whole(Bytes),
    /// The body was too large, had no end, or was passed on unrecorded. A retry is rejected with the status, because
    /// nothing can be replayed.
    NotRecorded,
    /// Headers and body, encrypted by the registry's `seal_with`. A store sees only bytes.
    Sealed(Bytes),
}

/// Shows no names, values or bodies, because they do not belong in logs.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("status", &self.status)
            .field("headers", &format_args!("{} lines", self.headers.len()))
            .field("body", &self.body)
            .field("recorded_at", &self.recorded_at)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RecordedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(bytes) => write!(f, "Whole({} bytes)", bytes.len()),
            Self::NotRecorded => f.write_str("NotRecorded"),
            Self::Sealed(bytes) => write!(f, "Sealed({} bytes)", bytes.len()),
        }
    }
}

impl Record {
    /// Creates a record of these parts. All of them are required, because a store that loses one would replay another
    /// response.
    pub const fn new(
        status: StatusCode,
        headers: Vec<(HeaderName, HeaderValue)>,
        body: RecordedBody,
        fingerprint: Fingerprint,
        recorded_at: SystemTime,
    ) -> Self {
        Self { status, headers, body, fingerprint, recorded_at, alone: None }
    }

    /// Returns the same outcome without headers and body. From it a retry learns that the request was executed.
    pub(crate) fn without_response(&self) -> Self {
        let Self { status, fingerprint, recorded_at, .. } = *self;
        Self::new(status, Vec::new(), RecordedBody::NotRecorded, fingerprint, recorded_at)
    }

    /// Returns the bytes of headers and body, without a store's own overhead.
    pub fn payload_bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        headers + self.body_bytes().map_or(0, Bytes::len)
    }

    /// Returns the bytes of the recorded body, if it was recorded. If the record is sealed, they are encrypted and
    /// include the headers.
    pub fn body_bytes(&self) -> Option<&Bytes> {
        match &self.body {
            RecordedBody::Whole(bytes) | RecordedBody::Sealed(bytes) => Some(bytes),
            RecordedBody::NotRecorded => None,
        }
    }
}

const UNWRITABLE_TIME: &str = "`recorded_at` is not within the years 1970 to 9999, which the text form can tell";

/// Returns the time as text, or `None` outside of these years, for which `humantime` would panic.
fn rfc3339(time: SystemTime) -> Option<String> {
    is_writable(time).then(|| humantime::format_rfc3339_millis(time).to_string())
}

fn is_writable(time: SystemTime) -> bool {
    const YEAR_10000: u64 = 253_402_300_800;
    time.duration_since(UNIX_EPOCH).is_ok_and(|since_epoch| since_epoch.as_secs() < YEAR_10000)
}

/// The version of the text form. A reader rejects any other version.
pub(crate) const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordText {
    version: u32,
    status: u16,
    headers: HeadersText,
    /// The body in base64, or `null` if it was not recorded.
    body: Option<String>,
    fingerprint: Fingerprint,
    recorded_at: String,
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = RecordText {
            version: VERSION,
            status: self.status.as_u16(),
            headers: HeadersText::of(self),
            body: self.body_bytes().map(|body| BASE64_STANDARD.encode(body)),
            fingerprint: self.fingerprint,
            recorded_at: rfc3339(self.recorded_at).ok_or_else(|| ser::Error::custom(UNWRITABLE_TIME))?,
        };
        text.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = RecordText::deserialize(deserializer)?;
        if text.version != VERSION {
            return Err(de::Error::custom(format_args!(
                "the record has version {}, this library reads version {VERSION}",
                text.version
            )));
        }
        let body = text.body.map(|body| BASE64_STANDARD.decode(body)).transpose().map_err(de::Error::custom)?;
        let (headers, body) = text.headers.with_body(body.map(Bytes::from)).map_err(de::Error::custom)?;
        let status = StatusCode::from_u16(text.status).map_err(de::Error::custom)?;
        let recorded_at = humantime::parse_rfc3339(&text.recorded_at).map(whole_millis).map_err(de::Error::custom)?;
        Ok(Self::new(status, headers, body, text.fingerprint, recorded_at))
    }
}

/// The headers of a record as JSON: the lines, or the word that says that they are sealed.
pub(crate) enum HeadersText {
    Lines(HeaderLines),
    Sealed,
}

const SEALED: &str = "sealed";

impl Serialize for HeadersText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Lines(lines) => lines.serialize(serializer),
            Self::Sealed => serializer.serialize_str(SEALED),
        }
    }
}

impl<'de> Deserialize<'de> for HeadersText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EitherForm;

        impl<'de> Visitor<'de> for EitherForm {
            type Value = HeadersText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of header lines or \"sealed\"")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<HeadersText, E> {
                if word == SEALED {
                    Ok(HeadersText::Sealed)
                } else {
                    Err(E::invalid_value(Unexpected::Other("a word"), &self))
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, lines: A) -> Result<HeadersText, A::Error> {
                HeaderLines::deserialize(SeqAccessDeserializer::new(lines)).map(HeadersText::Lines)
            }
        }

        deserializer.deserialize_any(EitherForm)
    }
}

/// The error of sealed headers without a body.
#[derive(Debug, thiserror::Error)]
#[error("the headers are sealed, and there is no body")]
pub(crate) struct NothingSealed;

impl HeadersText {
    pub(crate) fn of(record: &Record) -> Self {
        match record.body {
            RecordedBody::Sealed(_) => Self::Sealed,
            RecordedBody::Whole(_) | RecordedBody::NotRecorded => Self::Lines(HeaderLines(record.headers.clone())),
        }
    }

    /// Returns the record's headers and body from their stored forms.
    pub(crate) fn with_body(
        self,
        body: Option<Bytes>,
    ) -> Result<(Vec<(HeaderName, HeaderValue)>, RecordedBody), NothingSealed> {
        match (self, body) {
            (Self::Lines(HeaderLines(lines)), Some(body)) => Ok((lines, RecordedBody::Whole(body))),
            (Self::Lines(HeaderLines(lines)), None) => Ok((lines, RecordedBody::NotRecorded)),
            (Self::Sealed, Some(body)) => Ok((Vec::new(), RecordedBody::Sealed(body))),
            (Self::Sealed, None) => Err(NothingSealed),
        }
    }
}

/// The header lines as JSON: `[["content-type","text/plain"],["x-raw",{"base64":"/w=="}]]`.
///
/// A value that is not visible ASCII is written in base64, because a header's bytes need not be text. A sensitive
/// value, which neither logs nor HPACK's table may get, is marked: `["x-account",{"text":"4711","sensitive":true}]`.
pub(crate) struct HeaderLines(pub(crate) Vec<(HeaderName, HeaderValue)>);

#[derive(Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum ValueText {
    Plain(String),
    Marked {
        text: String,
        #[serde(default, skip_serializing_if = "is_false")]
        sensitive: bool,
    },
    Binary {
        base64: String,
        #[serde(default, skip_serializing_if = "is_false")]
        sensitive: bool,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Serialize for HeaderLines {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|(name, value)| {
            let sensitive = value.is_sensitive();
            let value = match value.to_str() {
                Ok(text) if sensitive => ValueText::Marked { text: text.to_owned(), sensitive },
                Ok(plain) => ValueText::Plain(plain.to_owned()),
                Err(_) => ValueText::Binary { base64: BASE64_STANDARD.encode(value.as_bytes()), sensitive },
            };
            (name.as_str(), value)
        }))
    }
}

impl<'de> Deserialize<'de> for HeaderLines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let lines = Vec::<(String, ValueText)>::deserialize(deserializer)?;
        let headers = lines.into_iter().map(|(name, value)| {
            let (value, sensitive) = match value {
                ValueText::Plain(plain) => (plain.into_bytes(), false),
                ValueText::Marked { text, sensitive } => (text.into_bytes(), sensitive),
                ValueText::Binary { base64, sensitive } => {
                    (BASE64_STANDARD.decode(base64).map_err(de::Error::custom)?, sensitive)
                }
            };
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(de::Error::custom)?;
            let mut value = HeaderValue::from_bytes(&value).map_err(de::Error::custom)?;
            value.set_sensitive(sensitive);
            Ok((name, value))
        });
        headers.collect::<Result<_, _>>().map(Self)
    }
}

/// Returns the current time in the precision that every store keeps.
pub(crate) fn now_in_millis() -> SystemTime {
    whole_millis(SystemTime::now())
}

/// Converts a time to milliseconds since 1970.
#[cfg(any(feature = "postgres", feature = "seal", feature = "sqlite"))]
pub(crate) fn unix_millis(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
        Err(error) => i64::try_from(error.duration().as_millis()).map_or(i64::MIN, |before| -before),
    }
}

fn whole_millis(time: SystemTime) -> SystemTime {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
