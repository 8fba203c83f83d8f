//! The digest of what a request asks for: a reused key must bring the same one.

use std::fmt;
use std::hash::Hasher;
use std::str::FromStr;

use http::{HeaderValue, Method, Uri};
use mediatype::{MediaType, ReadParams as _, names};
use memchr::memmem;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

/// A SHA-256 digest of a request, shown as 64 hexadecimal digits.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::Fingerprint;
///
/// let fingerprint = Fingerprint::from_bytes([0xab; 32]);
/// assert_eq!(fingerprint.to_string(), "ab".repeat(32));
/// assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
// A processor stalls where a value that was just written in words is read at odd places, as within an enum.
#[repr(align(8))]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint with this digest.
    pub const fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// The text is not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 hexadecimal digits")]
pub struct MalformedFingerprint;

impl FromStr for Fingerprint {
    type Err = MalformedFingerprint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(MalformedFingerprint);
        }
        let mut digest = [0; 32];
        for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = str::from_utf8(digits).map_err(|_| MalformedFingerprint)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| MalformedFingerprint)?;
        }
        Ok(Self(digest))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[derive(Clone, Copy)]
enum Part {
    Method,
    Path,
    Query,
    Body,
    Multipart,
    Credentials,
    Value,
    Digest,
}

/// Collects the parts of a fingerprint; each goes in with its kind and length, so that no two lists of parts meet.
#[derive(Clone)]
pub(crate) struct FingerprintBuilder(Sha256);

impl FingerprintBuilder {
    pub(crate) fn new() -> Self {
        Self(Sha256::new())
    }

    /// Method, path and query, as the client sent them.
    pub(crate) fn target(&mut self, method: &Method, uri: &Uri) {
        self.part(Part::Method, method.as_str().as_bytes());
        self.part(Part::Path, uri.path().as_bytes());
        if let Some(query) = uri.query() {
            self.part(Part::Query, query.as_bytes());
        }
    }

    /// The body; a multipart one without its boundary, which clients draw anew for each attempt.
    pub(crate) fn body(&mut self, multipart: Option<&HeaderValue>, body: &[u8]) {
        let Some(boundary) = multipart.and_then(boundary) else {
            return self.part(Part::Body, body);
        };
        let delimiter = format!("--{boundary}");
        let mut rest = body;
        for at in delimiters(body, delimiter.as_bytes()) {
            let start = body.len() - rest.len();
            self.part(Part::Multipart, &body[start..at]);
            rest = &body[at + delimiter.len()..];
        }
        self.part(Part::Multipart, rest);
    }

    /// Who asks, where no `caller` partitions the keys.
    pub(crate) fn credentials(&mut self, authorization: &[HeaderValue]) {
        for value in authorization {
            self.part(Part::Credentials, value.as_bytes());
        }
    }

    /// What was digested before.
    pub(crate) fn digest(&mut self, digest: Fingerprint) {
        self.part(Part::Digest, digest.as_bytes());
    }

    pub(crate) fn finish(self) -> Fingerprint {
        Fingerprint(self.0.finalize().into())
    }

    fn part(&mut self, kind: Part, bytes: &[u8]) {
        self.0.update([kind as u8]);
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}

/// Any value that hashes.
pub(crate) fn fingerprint_of_value<T: std::hash::Hash + ?Sized>(value: &T) -> Fingerprint {
    let mut hasher = DigestHasher(Sha256::new());
    value.hash(&mut hasher);
    let mut builder = FingerprintBuilder::new();
    builder.part(Part::Value, &hasher.0.finalize());
    builder.finish()
}

fn boundary(content_type: &HeaderValue) -> Option<String> {
    let media_type = MediaType::parse(content_type.to_str().ok()?).ok()?;
    if media_type.ty != names::MULTIPART {
        return None;
    }
    let boundary = media_type.get_param(names::BOUNDARY)?.unquoted_str().into_owned();
    (!boundary.is_empty()).then_some(boundary)
}

/// Where the delimiter stands at the start of a line (RFC 2046, section 5.1.1): elsewhere it is content.
fn delimiters<'a>(body: &'a [u8], delimiter: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    memmem::find_iter(body, delimiter).filter(|&at| at == 0 || body[..at].ends_with(b"\r\n"))
}

/// Feeds SHA-256 with what `Hash` writes: the same on every machine of one byte order, since slices of integers arrive
/// as they lie in memory.
struct DigestHasher(Sha256);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn write_u16(&mut self, value: u16) {
        self.write(&value.to_le_bytes());
    }

    fn write_u32(&mut self, value: u32) {
        self.write(&value.to_le_bytes());
    }

    fn write_u64(&mut self, value: u64) {
        self.write(&value.to_le_bytes());
    }

    fn write_u128(&mut self, value: u128) {
        self.write(&value.to_le_bytes());
    }

    // A record may be read by a process of another word size.
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    /// For implementations of `Hash` that look at the state.
    fn finish(&self) -> u64 {
        let digest: [u8; 32] = self.0.clone().finalize().into();
        digest.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
    }
}
