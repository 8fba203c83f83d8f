//! Encrypts records before they reach their store, so that a reader of the store learns no responses.
//!
//! The cipher is XChaCha20-Poly1305 (RFC 8439 with the 192-bit nonce of draft-irtf-cfrg-xchacha). Nonces are random,
//! and 192 bits allow so many of them that records need not be counted. The parts in clear and the place of the record
//! are authenticated too, so a record that was changed, or moved to another key, store or deployment, does not open.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use chacha20poly1305::aead::{Aead, Generate, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error_text::with_causes;
use crate::fingerprint::salted::{KeyId, Salt};
use crate::key::RecordKey;
use crate::record::envelope::{Content, Envelope, Opened, Place, VERSION, seal_line};
use crate::record::{Record, RecordedBody, unix_millis};
use crate::store::error::StoreError;

/// A secret of 32 bytes that seals records. See [`RegistryBuilder::seal_with`](crate::RegistryBuilder::seal_with).
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
pub struct SealingKey(Arc<Secrets>);

/// The secrets are shared and not copied, so they are in one place, where they are wiped.
struct Secrets {
    id: [u8; 8],
    cipher: XChaCha20Poly1305,
    fingerprints: Hmac<Sha256>,
    digests: Hmac<Sha256>,
}

impl SealingKey {
    /// Creates the key. The bytes must come from a cryptographic random generator. The key wipes its own copies.
    ///
    /// ```
    /// use idempotent_runtime::{MalformedSealingKey, SealingKey};
    ///
    /// let mut secret = [0; 32];
    /// assert_eq!(SealingKey::from_bytes(secret).err(), Some(MalformedSealingKey::NotRandom), "it was not filled");
    /// # fn fill_with_random_bytes(secret: &mut [u8]) { secret.iter_mut().zip(1..).for_each(|(byte, number)| *byte = number) }
    /// fill_with_random_bytes(&mut secret);
    /// assert!(SealingKey::from_bytes(secret).is_ok());
    /// ```
    ///
    /// # Errors
    ///
    /// [`MalformedSealingKey::NotRandom`] if all bytes are the same, as in a buffer that was never filled.
    pub fn from_bytes(mut bytes: [u8; 32]) -> Result<Self, MalformedSealingKey> {
        let key = Self::of(&bytes);
        bytes.zeroize();
        key
    }

    fn of(bytes: &[u8; 32]) -> Result<Self, MalformedSealingKey> {
        if bytes.iter().all(|byte| *byte == bytes[0]) {
            return Err(MalformedSealingKey::NotRandom);
        }
        // One secret has several uses, and each use gets a key of its own.
        let derived = |purpose: &[u8]| {
            let derived = mac(bytes).chain_update(purpose).finalize().into_bytes();
            Zeroizing::new(<[u8; 32]>::from(derived))
        };
        let mut id = [0; 8];
        id.copy_from_slice(&derived(b"idempotent key id v1")[..8]);
        Ok(Self(Arc::new(Secrets {
            id,
            cipher: XChaCha20Poly1305::new((&*derived(b"idempotent record v1")).into()),
            fingerprints: mac(&*derived(b"idempotent fingerprint v2")),
            digests: mac(&*derived(b"idempotent digest v1")),
        })))
    }

    /// Returns the id of the key. It reveals nothing, and is stored beside the records that the key has sealed.
    pub(crate) fn id(&self) -> [u8; 8] {
        self.0.id
    }

    /// Returns the key id of the fingerprints that this key makes.
    pub(crate) fn key_id(&self) -> KeyId {
        KeyId::of_secret(self.id())
    }

    /// Returns the salt of this record key's fingerprints. Without the secret, a guess at a request or a credential
    /// cannot be checked. Against a digest of a request with a card number, such a check would be easy.
    pub(crate) fn salt(&self, record_key: &RecordKey) -> Salt {
        let mac = self.0.fingerprints.clone().chain_update(record_key.as_str());
        Salt::keyed(self.key_id(), mac.finalize().into_bytes().into())
    }

    /// Returns the keyed digest of the values from which such a key is derived.
    pub(crate) fn downstream_key(&self, of: &[&[u8]]) -> [u8; 32] {
        let mac = self.0.digests.clone().chain_update(b"downstream key\0");
        of.iter().fold(mac, Mac::chain_update).finalize().into_bytes().into()
    }

    /// Returns the keyed digest of the caller or the credentials of a request.
    pub(crate) fn owner(&self, of: &[&[u8]]) -> [u8; 32] {
        let mac = self.0.digests.clone().chain_update(b"owner\0");
        of.iter().fold(mac, Mac::chain_update).finalize().into_bytes().into()
    }

    /// Returns the record key as it is stored by a registry with [`digest_keys`](crate::RegistryBuilder::digest_keys)
    /// and with this secret in [`digest_with`](crate::RegistryBuilder::digest_with): the plain scope, and keyed digests
    /// (HMAC-SHA-256) of the caller in this scope and of the whole key.
    ///
    /// Operators use it to look up and purge records of such a registry. The name of a step stays plain.
    ///
    /// ```
    /// use idempotent_runtime::{RecordKey, SealingKey};
    ///
    /// let secret: SealingKey = "1SoV0V1LP1xxwXZLKZpQHvBJWwzJCAkB7L4HmX4Hxm4=".parse()?;
    /// let key = RecordKey::new("charges", Some("alice"), "8e03978e");
    /// assert_eq!(secret.digested(&key).scope(), "charges");
    /// assert_ne!(secret.digested(&key), key.digested());
    /// # Ok::<(), idempotent_runtime::MalformedSealingKey>(())
    /// ```
    pub fn digested(&self, key: &RecordKey) -> RecordKey {
        key.digested_by(&|text| {
            let mac = self.0.digests.clone().chain_update(b"record key\0").chain_update(text);
            mac.finalize().into_bytes().into()
        })
    }
}

const _: () = {
    const fn wipes_itself<T: ZeroizeOnDrop>() {}
    wipes_itself::<XChaCha20Poly1305>();
    // An HMAC consists of this hash.
    wipes_itself::<Sha256>();
};

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
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedSealingKey {
    /// The text is not base64.
    #[error("a sealing key is written in base64, as `openssl rand -base64 32` prints it")]
    NotBase64,
    /// The key does not have 32 bytes.
    #[error("a sealing key has 32 bytes, and this one has {bytes}; make one with `openssl rand -base64 32`")]
    #[non_exhaustive]
    WrongLength {
        /// The number of bytes that it has.
        bytes: usize,
    },
    /// All bytes of the key are the same.
    #[error("a sealing key is random, and this one repeats one byte; make one with `openssl rand -base64 32`")]
    NotRandom,
}

impl fmt::Debug for MalformedSealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_causes(self, f)
    }
}

impl FromStr for SealingKey {
    type Err = MalformedSealingKey;

    fn from_str(text: &str) -> Result<Self, MalformedSealingKey> {
        let bytes = BASE64_STANDARD.decode(text.trim_ascii()).map_err(|_| MalformedSealingKey::NotBase64)?;
        let bytes = Zeroizing::new(bytes);
        match bytes.first_chunk() {
            Some(whole) if bytes.len() == whole.len() => Self::of(whole),
            _ => Err(MalformedSealingKey::WrongLength { bytes: bytes.len() }),
        }
    }
}

/// The keys of a registry. The first key seals, and every key opens.
///
/// To rotate, put the new key first. Keep the old key in the list until the last record that it sealed has expired: for
/// the longest `ttl` of all handlers.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::{SealingKey, SealingKeys};
///
/// let this_year: SealingKey = "1SoV0V1LP1xxwXZLKZpQHvBJWwzJCAkB7L4HmX4Hxm4=".parse()?;
/// let last_year: SealingKey = "8gKfEvGBwHnP0lH2yTn5e6aLx8k0Yx1m7P8qGJr3ZQ4=".parse()?;
/// let only = SealingKeys::from(this_year.clone());
/// let rotated = SealingKeys::from([this_year, last_year]);
/// // No key is shown.
/// assert!(format!("{only:?} {rotated:?}").contains("SealingKey(..)"));
/// # Ok::<(), idempotent_runtime::MalformedSealingKey>(())
/// ```
#[derive(Clone, Debug)]
pub struct SealingKeys {
    first: SealingKey,
    older: Vec<SealingKey>,
    deployment: String,
}

impl From<SealingKey> for SealingKeys {
    fn from(only: SealingKey) -> Self {
        Self { first: only, older: Vec::new(), deployment: String::new() }
    }
}

/// # Panics
///
/// Panics if there is no key.
impl<const N: usize> From<[SealingKey; N]> for SealingKeys {
    fn from(keys: [SealingKey; N]) -> Self {
        Vec::from(keys).into()
    }
}

/// # Panics
///
/// Panics if there is no key.
impl From<Vec<SealingKey>> for SealingKeys {
    fn from(keys: Vec<SealingKey>) -> Self {
        let mut keys = keys.into_iter();
        let first = keys.next().expect("records are sealed with at least one key");
        Self { first, older: keys.collect(), deployment: String::new() }
    }
}

impl SealingKeys {
    /// Returns the key that seals.
    pub(crate) fn first(&self) -> &SealingKey {
        &self.first
    }

    /// Names the deployment, such as `production`. A record that was copied from another deployment is then rejected,
    /// even if both have the same keys. The default is an empty name.
    ///
    /// If the name changes, the deployment's own earlier records are rejected too. So set the name together with the
    /// first key.
    ///
    /// # Examples
    ///
    /// ```
    /// use idempotent_runtime::{Registry, SealingKey, SealingKeys, store::MemoryStore};
    ///
    /// let key: SealingKey = "1SoV0V1LP1xxwXZLKZpQHvBJWwzJCAkB7L4HmX4Hxm4=".parse()?;
    /// let keys = SealingKeys::from(key).deployment("production");
    /// let registry = Registry::builder(MemoryStore::new()).seal_with(keys).build();
    /// # Ok::<(), idempotent_runtime::MalformedSealingKey>(())
    /// ```
    #[must_use]
    pub fn deployment(self, name: impl Into<String>) -> Self {
        Self { deployment: name.into(), ..self }
    }

    /// Seals the record. If the `ttl` is not known yet, the content states no end.
    pub(crate) fn seal(&self, place: Place<'_>, record: &Record, ttl: Option<Duration>) -> Record {
        let sealed = self.sealed(place, record, ttl);
        if sealed.is_none() {
            // The handler has run. This record opens with no key, which keeps a retry from running the handler again.
            tracing::error!("a record could not be sealed: its retries are rejected");
        }
        let is_whole = record.body != RecordedBody::NotRecorded;
        let (headers, body) = match sealed {
            Some(envelope) if is_whole => (Vec::new(), RecordedBody::Sealed(envelope)),
            Some(envelope) => (vec![seal_line(&envelope)], RecordedBody::NotRecorded),
            None => (Vec::new(), RecordedBody::NotRecorded),
        };
        Record { headers, body, ..record.without_response() }
    }

    fn sealed(&self, place: Place<'_>, record: &Record, ttl: Option<Duration>) -> Option<Bytes> {
        let content = Content::encode(record, ttl)?;
        let nonce = XNonce::try_generate().ok()?;
        let id = self.first.id();
        let payload = Payload { msg: &content, aad: &self.bound_to(id, place, record) };
        let sealed = self.first.0.cipher.encrypt(&nonce, payload).ok()?;
        Some(Envelope { id, nonce: nonce.into(), sealed: &sealed }.write())
    }

    /// Opens the envelope of this record and returns the content.
    pub(crate) fn open(&self, place: Place<'_>, record: &Record, envelope: &[u8]) -> Result<Opened, StoreError> {
        let Envelope { id, nonce, sealed } = Envelope::read(envelope)?;
        let Some(key) = self.all().find(|key| key.id() == id) else {
            let id = u64::from_be_bytes(id);
            return Err(StoreError::damaged(format_args!(
                "none of the registry's keys has the id {id:016x}, which the sealed record names"
            )));
        };
        let payload = Payload { msg: sealed, aad: &self.bound_to(id, place, record) };
        let content = key.0.cipher.decrypt(&nonce.into(), payload).map_err(|_| {
            StoreError::damaged("the sealed record was changed, or is that of another key, store or deployment")
        })?;
        let content = Content::decode(content.into(), record.recorded_at)?;
        if content.is_expired(SystemTime::now()) {
            return Err(StoreError::damaged("the sealed record is kept beyond its expiry: purge it"));
        }
        let is_whole = record.body != RecordedBody::NotRecorded;
        Ok(if is_whole { Opened::Whole(content.headers, content.body) } else { Opened::NotRecorded })
    }

    /// Returns the parts that are stored in clear beside the sealed bytes, and the place of the record.
    fn bound_to(&self, id: [u8; 8], place: Place<'_>, record: &Record) -> Vec<u8> {
        let is_whole = record.body != RecordedBody::NotRecorded;
        let fields: [&[u8]; 9] = [
            &[VERSION],
            &id,
            self.deployment.as_bytes(),
            place.store.as_bytes(),
            place.key.as_str().as_bytes(),
            &[is_whole.into()],
            &record.status.as_u16().to_be_bytes(),
            record.fingerprint.as_bytes(),
            &unix_millis(record.recorded_at).to_be_bytes(),
        ];
        let mut bound = Vec::new();
        for field in fields {
            // Each field has its length in front, so that no two lists of fields have the same bytes.
            bound.extend((field.len() as u64).to_be_bytes());
            bound.extend(field);
        }
        bound
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &SealingKey> {
        std::iter::once(&self.first).chain(&self.older)
    }
}
