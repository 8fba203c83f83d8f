//! The data that a store gets: keys as given or as digests, records in clear or sealed.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use http::{HeaderName, StatusCode};

use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use crate::fingerprint::Fingerprint;
use crate::fingerprint::builder::RequestDigest;
use crate::fingerprint::salted::{KeyId, Salt};
use crate::key::RecordKey;
use crate::record::envelope::{Opened, Place, envelope_of, in_clear};
use crate::record::fingerprints::{Compared, Fingerprints};
#[cfg(not(feature = "seal"))]
use crate::record::protection::unsealed::{SealingKey, SealingKeys};
#[cfg(feature = "seal")]
use crate::record::sealing::{SealingKey, SealingKeys};
use crate::record::{Record, RecordedBody, now_in_millis};
use crate::store::claim::Owner;
use crate::store::error::StoreError;

const OF_CREDENTIALS: &[u8] = b"credentials\0";

/// The owner of all requests that have neither a caller nor credentials, without a secret.
static ANONYMOUS: LazyLock<Owner> = LazyLock::new(|| owner_of(Sha256::digest(OF_CREDENTIALS).into()));

fn owner_of(digest: [u8; 32]) -> Owner {
    let (owner, _) = digest.split_first_chunk().expect("32 bytes have 16");
    Owner::from_u128(u128::from_be_bytes(*owner))
}

/// The choices of the registry.
#[derive(Default)]
pub(crate) struct AtRest {
    pub(crate) digest_keys: bool,
    /// The secret that keys all digests. It is never rotated.
    pub(crate) secret: Option<SealingKey>,
    pub(crate) sealing: Option<SealingKeys>,
    /// Whether the sealing keys only open records, and do not seal any yet.
    pub(crate) only_opens: bool,
    /// The time until which records that are not sealed are replayed.
    pub(crate) accept_unsealed_until: Option<SystemTime>,
}

impl AtRest {
    /// Returns the key under which the store keeps the data of `key`.
    pub(crate) fn key(&self, key: &RecordKey) -> RecordKey {
        match &self.secret {
            _ if !self.digest_keys => key.clone(),
            Some(secret) => secret.digested(key),
            None => key.digested(),
        }
    }

    /// Returns the fingerprints of a request. The record key is the plain one, so a reader of digested keys does not
    /// even know the salt.
    pub(crate) fn fingerprints(&self, key: &RecordKey, request: RequestDigest) -> Fingerprints {
        let secret = self.secret.as_ref().or_else(|| self.sealing_for_writing().map(SealingKeys::first));
        let salt = secret.map_or_else(|| Salt::unkeyed(key.as_str()), |secret| secret.salt(key));
        Fingerprints::new(&salt, key, request)
    }

    /// Returns the owner of a request's entry: the caller, or else the client with these credentials, or else all
    /// clients without credentials. Unlike a fingerprint, the owner is equal for all keys. Otherwise nothing could be
    /// counted.
    pub(crate) fn owner(&self, caller: Option<&str>, request: &RequestDigest) -> Owner {
        let secret = self.secret.as_ref().or_else(|| self.sealing_for_writing().map(SealingKeys::first));
        if secret.is_none() && caller.is_none() && request.credentials().next().is_none() {
            return *ANONYMOUS;
        }
        let mut pieces: SmallVec<[&[u8]; 4]> = SmallVec::new();
        pieces.push(if caller.is_some() { b"caller\0" } else { OF_CREDENTIALS });
        match caller {
            Some(caller) => pieces.push(caller.as_bytes()),
            None => pieces.extend(request.credentials().map(<[u8; 32]>::as_slice)),
        }
        let digest: [u8; 32] = match secret {
            Some(secret) => secret.owner(&pieces),
            None => pieces.iter().fold(Sha256::new(), Digest::chain_update).finalize().into(),
        };
        owner_of(digest)
    }

    /// Compares the stored fingerprint with that of the request. `names` are the names of the credential headers that
    /// count.
    pub(crate) fn compare(&self, own: &Fingerprints, stored: Fingerprint, names: &[HeaderName]) -> Compared {
        if own.first == stored {
            return Compared::Same;
        }
        let (id, key) = (stored.key_id(), own.record_key());
        let unkeyed = (id == KeyId::UNKEYED).then(|| Salt::unkeyed(key.as_str()));
        let secrets = self.secret.iter().chain(self.sealing.iter().flat_map(SealingKeys::all));
        let keyed = secrets.filter(|secret| secret.key_id() == id).map(|secret| secret.salt(key));
        own.compare(stored, unkeyed.into_iter().chain(keyed), names)
    }

    pub(crate) fn is_same(&self, own: &Fingerprints, stored: Fingerprint) -> bool {
        matches!(self.compare(own, stored, &[]), Compared::Same)
    }

    /// Returns the source from which the request of this digest derives keys for other services.
    pub(crate) fn downstream(&self, request: &RequestDigest) -> Downstream {
        Downstream { request: request.clone(), secret: self.secret.clone() }
    }

    fn accepts_unsealed(&self) -> bool {
        self.only_opens || self.accept_unsealed_until.is_some_and(|until| SystemTime::now() < until)
    }

    /// Returns the keys that seal records, if there are any.
    fn sealing_for_writing(&self) -> Option<&SealingKeys> {
        self.sealing.as_ref().filter(|_| !self.only_opens)
    }

    /// Returns the record in the form for the store, which keeps it for the `ttl`. If the `ttl` is not known yet, it is
    /// not sealed with the record.
    pub(crate) fn seal<'r>(&self, place: Place<'_>, record: &'r Record, ttl: Option<Duration>) -> Cow<'r, Record> {
        match self.sealing_for_writing() {
            Some(sealing) => Cow::Owned(sealing.seal(place, record, ttl)),
            None => in_clear(record).map_or(Cow::Borrowed(record), Cow::Owned),
        }
    }

    /// Returns a record without a response for the store. It is used if a handler commits its transaction itself, so
    /// that its response was rejected.
    pub(crate) fn without_response(&self, place: Place<'_>, fingerprint: Fingerprint) -> Record {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let record = Record::new(status, Vec::new(), RecordedBody::NotRecorded, fingerprint, now_in_millis());
        self.seal(place, &record, None).into_owned()
    }

    /// Returns the record as it was before it was sealed.
    ///
    /// If the registry seals records, an unsealed one was planted or changed, or recorded before the registry had a
    /// key.
    pub(crate) fn open(&self, place: Place<'_>, record: Record) -> Result<Opened, StoreError> {
        if record.status.is_informational() {
            return Err(StoreError::damaged("the status of the record is that of no final response"));
        }
        match (&self.sealing, envelope_of(&record)?) {
            (None, None) => Ok(Opened::in_clear(record)),
            (None, Some(_)) => {
                Err(StoreError::damaged("the record is sealed, and the registry was built without `seal_with`"))
            }
            (Some(sealing), Some(envelope)) => sealing.open(place, &record, &envelope),
            (Some(_), None) if self.accepts_unsealed() => Ok(Opened::in_clear(record)),
            (Some(_), None) => Err(StoreError::damaged(
                "the record is not sealed: it was changed, or made before `seal_with` and later than `accept_unsealed_until` allows",
            )),
        }
    }
}

/// The source from which keys for other services are derived.
#[derive(Default)]
pub(crate) struct Downstream {
    request: RequestDigest,
    secret: Option<SealingKey>,
}

impl Downstream {
    pub(crate) fn key(&self, pieces: &[&[u8]]) -> [u8; 32] {
        let request = self.request.whole();
        let pieces = [&[request.as_slice()], pieces].concat();
        match &self.secret {
            Some(secret) => secret.downstream_key(&pieces),
            None => pieces.iter().fold(Sha256::new(), Digest::chain_update).finalize().into(),
        }
    }
}

/// The types of a build in which no key can exist. They have no values, so that the code for sealing needs no `cfg`, and
/// the compiler removes it.
#[cfg(not(feature = "seal"))]
mod unsealed {
    use bytes::Bytes;

    use super::{Duration, KeyId, Opened, Place, Record, RecordKey, Salt, StoreError};

    #[derive(Clone)]
    pub(crate) enum SealingKey {}

    impl SealingKey {
        pub(crate) fn key_id(&self) -> KeyId {
            match *self {}
        }

        pub(crate) fn salt(&self, _: &RecordKey) -> Salt {
            match *self {}
        }

        pub(crate) fn digested(&self, _: &RecordKey) -> RecordKey {
            match *self {}
        }

        pub(crate) fn downstream_key(&self, _: &[&[u8]]) -> [u8; 32] {
            match *self {}
        }

        pub(crate) fn owner(&self, _: &[&[u8]]) -> [u8; 32] {
            match *self {}
        }
    }

    pub(crate) enum SealingKeys {}

    impl SealingKeys {
        pub(crate) fn first(&self) -> &SealingKey {
            match *self {}
        }

        pub(crate) fn all(&self) -> std::slice::Iter<'_, SealingKey> {
            match *self {}
        }

        pub(crate) fn seal(&self, _: Place<'_>, _: &Record, _: Option<Duration>) -> Record {
            match *self {}
        }

        pub(crate) fn open(&self, _: Place<'_>, _: &Record, _: &Bytes) -> Result<Opened, StoreError> {
            match *self {}
        }
    }
}
