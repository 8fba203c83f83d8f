//! Encrypts records before they reach their store, so that a reader of the store learns no responses.
//!
//! XChaCha20-Poly1305 (RFC 8439 with the 192-bit nonce of draft-irtf-cfrg-xchacha): nonces are drawn at random, and so
//! many of 192 bits can be that no count of records need be kept. The record's key, status, fingerprint and time are
//! authenticated with it: a sealed record that is moved under another key does not open.

use std::fmt;
use std::str::FromStr;
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use chacha20poly1305::aead::{Aead, Generate, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use http::{HeaderName, HeaderValue};
use sha2::Sha256;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::record::HeaderLines;
use crate::record::{Record, RecordedBody};
use crate::store::error::StoreError;

/// A secret of 32 bytes that seals records; see [`RegistryBuilder::seal_with`](crate::RegistryBuilder::seal_with).
///
/// # Examples
///
/// ```
/// use idempotent_runtime::SealingKey;
///
/// // As `openssl rand -base64 32` prints one, from the environment or a secret manager.
/// let key: SealingKey = "1SoV0V1LP1xxwXZLKZpQHvBJWwzJCAkB7L4HmX4Hxm4=".parse()?;
/// assert_eq!(format!("{key:?}"), "SealingKey(..)");
/// # Ok::<(), idempotent_runtime::MalformedSealingKey>(())
/// ```
#[derive(Clone)]
pub struct SealingKey {
    cipher: XChaCha20Poly1305,
    fingerprints: Hmac<Sha256>,
}

impl SealingKey {
    /// The key with these bytes. They must come from a cryptographic random generator.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        // One secret, two uses: each gets a key of its own.
        let derived = |purpose: &[u8]| mac(&bytes).chain_update(purpose).finalize().into_bytes();
        Self {
            cipher: XChaCha20Poly1305::new(&derived(b"idempotent record v1")),
            fingerprints: mac(&derived(b"idempotent fingerprint v1")),
        }
    }
}

fn mac(key: &[u8]) -> Hmac<Sha256> {
    <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of every length")
}

/// Shows nothing of the secret.
impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(..)")
    }
}

/// The text is not a sealing key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedSealingKey {
    /// It is not base64.
    #[error("a sealing key is written in base64, as `openssl rand -base64 32` prints it")]
    NotBase64,
    /// It does not have 32 bytes.
    #[error("a sealing key has 32 bytes, and this one has {bytes}; make one with `openssl rand -base64 32`")]
    #[non_exhaustive]
    WrongLength {
        /// How many it has.
        bytes: usize,
    },
}

impl FromStr for SealingKey {
    type Err = MalformedSealingKey;

    fn from_str(text: &str) -> Result<Self, MalformedSealingKey> {
        let bytes = BASE64_STANDARD.decode(text.trim_ascii()).map_err(|_| MalformedSealingKey::NotBase64)?;
        let wrong_length = |bytes: Vec<u8>| MalformedSealingKey::WrongLength { bytes: bytes.len() };
        bytes.try_into().map(Self::from_bytes).map_err(wrong_length)
    }
}

/// The keys of a registry: the first key seals, every key opens.
///
/// To rotate, put the new key first. Keep the old key in the list until the last record that it sealed has expired: for the
/// longest `ttl` of all handlers.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::{SealingKey, SealingKeys};
///
/// let (this_year, last_year) = (SealingKey::from_bytes([7; 32]), SealingKey::from_bytes([6; 32]));
/// let only = SealingKeys::from(this_year.clone());
/// let rotated = SealingKeys::from([this_year, last_year]);
/// // No key is shown.
/// assert!(format!("{only:?} {rotated:?}").contains("SealingKey(..)"));
/// ```
#[derive(Clone, Debug)]
pub struct SealingKeys {
    first: SealingKey,
    older: Vec<SealingKey>,
}

impl From<SealingKey> for SealingKeys {
    fn from(only: SealingKey) -> Self {
        Self { first: only, older: Vec::new() }
    }
}

/// # Panics
///
/// When there is none.
impl<const N: usize> From<[SealingKey; N]> for SealingKeys {
    fn from(keys: [SealingKey; N]) -> Self {
        Vec::from(keys).into()
    }
}

/// # Panics
///
/// When there is none.
impl From<Vec<SealingKey>> for SealingKeys {
    fn from(keys: Vec<SealingKey>) -> Self {
        let mut keys = keys.into_iter();
        let first = keys.next().expect("records are sealed with at least one key");
        Self { first, older: keys.collect() }
    }
}

/// The form of what is sealed; a reader rejects any other.
const VERSION: u8 = 1;
const NONCE_BYTES: usize = 24;

impl SealingKeys {
    /// The fingerprint under each key, part by part: without the key, no guess at a request or at a credential can be tried
    /// out. For a digest of a request with a card number that would not be hard.
    pub(crate) fn fingerprints(&self, plain: Fingerprint) -> impl Iterator<Item = Fingerprint> {
        self.all().map(move |key| {
            plain.keyed(|number, part| {
                key.fingerprints.clone().chain_update([number]).chain_update(part).finalize().into_bytes().into()
            })
        })
    }

    pub(crate) fn seal(&self, key: &RecordKey, record: &Record) -> Record {
        let body = self.sealed(key, record).map_or(RecordedBody::NotRecorded, RecordedBody::Sealed);
        if body == RecordedBody::NotRecorded {
            // The handler has run: a record without a response keeps its retry from running it again.
            tracing::error!("a response could not be sealed, and only its status is recorded");
        }
        Record {
            status: record.status,
            headers: Vec::new(),
            body,
            fingerprint: record.fingerprint,
            recorded_at: record.recorded_at,
        }
    }

    fn sealed(&self, key: &RecordKey, record: &Record) -> Option<Bytes> {
        let headers = serde_json::to_vec(&HeaderLines(record.headers.clone())).ok()?;
        let body = record.body_bytes()?;
        let mut content = Vec::with_capacity(4 + headers.len() + body.len());
        content.extend(u32::try_from(headers.len()).ok()?.to_be_bytes());
        content.extend(headers);
        content.extend_from_slice(body);
        let nonce = XNonce::try_generate().ok()?;
        let payload = Payload { msg: &content, aad: &bound_to(key, record) };
        let sealed = self.first.cipher.encrypt(&nonce, payload).ok()?;
        Some([[VERSION].as_slice(), &nonce, &sealed].concat().into())
    }

    /// Its headers and body.
    pub(crate) fn open(
        &self,
        key: &RecordKey,
        record: &Record,
    ) -> Result<(Vec<(HeaderName, HeaderValue)>, Bytes), StoreError> {
        let damaged = || StoreError::damaged("the sealed record is not whole");
        let (version, sealed) = record.body_bytes().and_then(|body| body.split_first()).ok_or_else(damaged)?;
        if *version != VERSION {
            return Err(StoreError::damaged(format_args!(
                "the sealed record has version {version}, this library reads version {VERSION}"
            )));
        }
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or_else(damaged)?;
        let aad = bound_to(key, record);
        let content = self
            .all()
            .find_map(|key| key.cipher.decrypt(nonce.into(), Payload { msg: sealed, aad: &aad }).ok())
            .ok_or_else(|| StoreError::damaged("none of the registry's sealing keys opens the record"))?;
        let content = Bytes::from(content);
        let length = content.first_chunk().map(|length| u32::from_be_bytes(*length) as usize).ok_or_else(damaged)?;
        let headers = content.get(4..4 + length).ok_or_else(damaged)?;
        let HeaderLines(headers) = serde_json::from_slice(headers).map_err(|_| damaged())?;
        Ok((headers, content.slice(4 + length..)))
    }

    fn all(&self) -> impl Iterator<Item = &SealingKey> {
        std::iter::once(&self.first).chain(&self.older)
    }
}

/// The fields that are stored in clear beside the sealed bytes.
fn bound_to(key: &RecordKey, record: &Record) -> Vec<u8> {
    let recorded_at = match record.recorded_at.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_millis().cast_signed(),
        Err(error) => -error.duration().as_millis().cast_signed(),
    };
    // None of them holds a space.
    format!("{} {} {} {recorded_at}", key.as_str(), record.status.as_u16(), record.fingerprint).into_bytes()
}
