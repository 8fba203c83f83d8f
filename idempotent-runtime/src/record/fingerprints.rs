//! The fingerprints that one request has in a registry: one for each of its secrets, and one without a secret.

use http::HeaderName;

use crate::fingerprint::Fingerprint;
use crate::fingerprint::builder::RequestDigest;
use crate::fingerprint::difference::Difference;
use crate::fingerprint::salted::{KeyId, Salt};
use crate::key::RecordKey;
use crate::store::error::StoreError;

/// The fingerprints of a request under its record key.
pub(crate) struct Fingerprints {
    /// The fingerprint that is written.
    pub(crate) first: Fingerprint,
    record_key: RecordKey,
    request: RequestDigest,
}

/// The result of comparing a stored fingerprint with that of a request.
pub(crate) enum Compared {
    Same,
    Other(Difference),
    /// The fingerprint was made with a secret that this registry does not have, so nothing is known of its request.
    Incomparable(KeyId),
}

impl Fingerprints {
    pub(super) fn new(salt: &Salt, record_key: &RecordKey, request: RequestDigest) -> Self {
        Self { first: salt.fingerprint(&request), record_key: record_key.clone(), request }
    }

    /// Returns the digests of the request in a form that no store gets.
    pub(crate) fn request(&self) -> &RequestDigest {
        &self.request
    }

    pub(super) fn record_key(&self) -> &RecordKey {
        &self.record_key
    }

    /// Compares with another fingerprint. `salts` are those of the secrets that may have made it. `names` are the names
    /// of the credential headers that count.
    pub(super) fn compare(
        &self,
        other: Fingerprint,
        salts: impl Iterator<Item = Salt>,
        names: &[HeaderName],
    ) -> Compared {
        let mut difference = None;
        for own in salts.map(|salt| salt.fingerprint(&self.request)) {
            if own == other {
                return Compared::Same;
            }
            difference = Some(own.difference(other, names));
        }
        difference.map_or(Compared::Incomparable(other.key_id()), Compared::Other)
    }
}

/// Returns the error of a claim or record that cannot be compared with a request.
pub(crate) fn incomparable(id: KeyId) -> StoreError {
    StoreError::damaged(format_args!(
        "its fingerprint was made with the secret {id}, which this registry does not have: list that key in `seal_with` or \
         `open_with`, or give it to `digest_with`"
    ))
}
