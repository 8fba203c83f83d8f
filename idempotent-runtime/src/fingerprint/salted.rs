//! Fingerprints in the form that stores get: salted with their record key, and keyed if the registry has a secret.
//!
//! Equal requests under two keys have different fingerprints, and each part differs. So a reader of a store cannot see
//! that two clients sent the same content, and must guess separately for each record.

use std::fmt;

use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use crate::fingerprint::Fingerprint;
use crate::fingerprint::builder::RequestDigest;
use crate::fingerprint::difference::{HINTS, WHOLE};

/// Identifies the algorithms of a fingerprint, and its secret if it has one. The id is in the fingerprint's first
/// bytes, so it is stored with each claim and each record.
///
/// A release that changes an algorithm gives all secrets other ids. Like a registry that replaces its secret, it must
/// compute the fingerprints of the former ids too, so that it rejects no retry. A process that does not know an id
/// answers 503 and runs nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyId([u8; 4]);

impl KeyId {
    /// The id of a registry without a secret. The number is the version of the algorithms.
    pub(crate) const UNKEYED: Self = Self([0, 0, 0, 1]);

    #[cfg(feature = "seal")]
    pub(crate) fn of_secret([a, b, c, d, ..]: [u8; 8]) -> Self {
        Self([a, b, c, d])
    }
}

impl Fingerprint {
    /// Returns the id of the secret with which the fingerprint was made.
    pub(crate) fn key_id(self) -> KeyId {
        KeyId(self.0[..WHOLE.start].try_into().expect("four bytes"))
    }
}

/// The form in logs.
impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The salt of all fingerprints of one record key, under one secret or without one.
pub(crate) struct Salt {
    id: KeyId,
    /// The first half goes into each digest. The second half is the hint for a part that the request does not have.
    bytes: [u8; 32],
}

const LENGTH: usize = 16;
/// The number in the digest of all parts. No single part has this number.
const OF_WHOLE: u8 = 0xff;
/// The bytes of each part's digest in the digest of all parts: as many as a fingerprint has of that. With two parts,
/// salt and parts fit into one block of SHA-256.
const OF_PART: usize = WHOLE.end - WHOLE.start;

impl Salt {
    pub(crate) fn unkeyed(record_key: &str) -> Self {
        // The digest of the record key alone is the stored key under `digest_keys`. An additional byte makes the salt
        // different from it, and a key with a UUID still fits into one block.
        let mut salted = SmallVec::<[u8; 256]>::from_slice(&[1]);
        salted.extend_from_slice(record_key.as_bytes());
        Self { id: KeyId::UNKEYED, bytes: Sha256::digest(&salted).into() }
    }

    /// Creates the salt of a registry with a secret. `bytes` is the MAC of the record key.
    #[cfg(feature = "seal")]
    pub(crate) fn keyed(id: KeyId, bytes: [u8; 32]) -> Self {
        Self { id, bytes }
    }

    pub(crate) fn fingerprint(&self, request: &RequestDigest) -> Fingerprint {
        let (salt, absent) = self.bytes.split_at(LENGTH);
        let mut bytes = [0; 32];
        bytes[..WHOLE.start].copy_from_slice(&self.id.0);
        bytes[WHOLE].copy_from_slice(&salted_whole(salt, request)[..WHOLE.len()]);
        bytes[WHOLE.end..].copy_from_slice(&absent[..32 - WHOLE.end]);
        for (part, digest) in request.parts() {
            let hint = HINTS[usize::from(part)].clone();
            let salted = salted(salt, part, digest);
            let length = hint.len();
            bytes[hint].copy_from_slice(&salted[..length]);
        }
        Fingerprint(bytes)
    }
}

/// Returns the salted digest of all parts. The parts are in a fixed order, each with its number and a fixed length.
fn salted_whole(salt: &[u8], request: &RequestDigest) -> [u8; 32] {
    let mut salted = SmallVec::<[u8; 128]>::from_slice(salt);
    salted.push(OF_WHOLE);
    for (part, digest) in request.parts() {
        salted.push(part);
        salted.extend_from_slice(&digest[..OF_PART]);
    }
    Sha256::digest(&salted).into()
}

/// Returns the salted digest of a part. Salt, number and digest fit into one block of SHA-256. All have a fixed length,
/// and only the beginning of the result is kept, so with a secret salt it is as good as a MAC.
fn salted(salt: &[u8], part: u8, digest: &[u8; 32]) -> [u8; 32] {
    let mut salted = [part; LENGTH + 1 + 32];
    salted[..LENGTH].copy_from_slice(salt);
    salted[LENGTH + 1..].copy_from_slice(digest);
    Sha256::digest(salted).into()
}
