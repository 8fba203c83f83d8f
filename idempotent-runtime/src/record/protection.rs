//! What a store gets to see: keys as given or as digests, records as they are or sealed.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::fingerprint::Fingerprint;
use crate::fingerprint::difference::Difference;
use crate::key::RecordKey;
#[cfg(not(feature = "seal"))]
use crate::record::protection::unsealed::SealingKeys;
#[cfg(feature = "seal")]
use crate::record::sealing::SealingKeys;
use crate::record::{Record, RecordedBody};
use crate::store::error::StoreError;

/// The registry's choices.
#[derive(Default)]
pub(crate) struct AtRest {
    pub(crate) digest_keys: bool,
    pub(crate) sealing: Option<SealingKeys>,
}

impl AtRest {
    /// The key under which the store keeps what belongs to `key`.
    pub(crate) fn key(&self, key: &RecordKey) -> RecordKey {
        if self.digest_keys { key.digested() } else { key.clone() }
    }

    pub(crate) fn fingerprints(&self, plain: Fingerprint) -> Fingerprints {
        if let Some(sealing) = &self.sealing {
            let mut keyed = sealing.fingerprints(plain);
            let first = keyed.next().unwrap_or(plain);
            return Fingerprints { first, plain, others: keyed.chain([plain]).collect() };
        }
        Fingerprints { first: plain, plain, others: Vec::new() }
    }

    /// The record as the store gets it.
    pub(crate) fn seal(&self, key: &RecordKey, record: Record) -> Record {
        match (&self.sealing, &record.body) {
            (Some(sealing), RecordedBody::Whole(_)) => sealing.seal(key, &record),
            _ => record,
        }
    }

    /// The record as it was before it was sealed.
    ///
    /// One that is not sealed was recorded before the registry had a key.
    pub(crate) fn open(&self, key: &RecordKey, record: Record) -> Result<Opened, StoreError> {
        match record.body {
            RecordedBody::Whole(body) => Ok(Opened::Whole(record.headers, body)),
            RecordedBody::NotRecorded => Ok(Opened::NotRecorded),
            RecordedBody::Sealed(_) => {
                let Some(sealing) = &self.sealing else {
                    return Err(StoreError::damaged(
                        "the record is sealed, and the registry was built without `seal_with`",
                    ));
                };
                let (headers, body) = sealing.open(key, &record)?;
                Ok(Opened::Whole(headers, body))
            }
        }
    }
}

/// What is left to replay.
pub(crate) enum Opened {
    Whole(Vec<(HeaderName, HeaderValue)>, Bytes),
    NotRecorded,
}

/// The digests by which one request may be known: with each of the sealing keys, and without one.
pub(crate) struct Fingerprints {
    /// The one that is written.
    pub(crate) first: Fingerprint,
    /// The one that no sealing key changes.
    pub(crate) plain: Fingerprint,
    others: Vec<Fingerprint>,
}

impl Fingerprints {
    pub(crate) fn contain(&self, fingerprint: Fingerprint) -> bool {
        self.first == fingerprint || self.others.contains(&fingerprint)
    }

    /// In what the request with this other fingerprint differs; `names` are those of the credential headers that count.
    pub(crate) fn difference(&self, other: Fingerprint, names: &[HeaderName]) -> Difference {
        // Under the wrong sealing key, every part looks different.
        let nearest = self.others.iter().chain([&self.first]).min_by_key(|own| own.distance(other));
        nearest.unwrap_or(&self.first).difference(other, names)
    }
}

/// There is no key to be had.
#[cfg(not(feature = "seal"))]
mod unsealed {
    use super::{Bytes, Fingerprint, HeaderName, HeaderValue, Record, RecordKey, StoreError};

    pub(crate) enum SealingKeys {}

    impl SealingKeys {
        pub(crate) fn fingerprints(&self, _: Fingerprint) -> std::iter::Empty<Fingerprint> {
            match *self {}
        }

        pub(crate) fn seal(&self, _: &RecordKey, _: &Record) -> Record {
            match *self {}
        }

        pub(crate) fn open(
            &self,
            _: &RecordKey,
            _: &Record,
        ) -> Result<(Vec<(HeaderName, HeaderValue)>, Bytes), StoreError> {
            match *self {}
        }
    }
}
