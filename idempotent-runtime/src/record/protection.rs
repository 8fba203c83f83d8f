//! What a store gets to see: keys as given or as digests, records as they are or sealed.

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

/// The registry's choices.
#[derive(Default)]
pub(crate) struct AtRest {
    pub(crate) digest_keys: bool,
    /// Keys all digests, and is never rotated.
    pub(crate) secret: Option<SealingKey>,
    pub(crate) sealing: Option<SealingKeys>,
    /// The sealing keys open records, and nothing is written with them yet.
    pub(crate) only_opens: bool,
    /// Until then, records that are not sealed are replayed as they are.
    pub(crate) accept_unsealed_until: Option<SystemTime>,
}

impl AtRest {
    /// The key under which the store keeps what belongs to `key`.
    pub(crate) fn key(&self, key: &RecordKey) -> RecordKey {
        match &self.secret {
            _ if !self.digest_keys => key.clone(),
            Some(secret) => secret.digested(key),
            None => key.digested(),
        }
    }

    /// The fingerprints of a request. The record key is the plain one: a reader of digested keys does not even know the salt.
    pub(crate) fn fingerprints(&self, key: &RecordKey, request: RequestDigest) -> Fingerprints {
        let secret = self.secret.as_ref().or_else(|| self.sealing_for_writing().map(SealingKeys::first));
        let salt = secret.map_or_else(|| Salt::unkeyed(key.as_str()), |secret| secret.salt(key));
        Fingerprints::new(&salt, key, request)
    }

    /// Whom the entry of a request counts for: the caller, else the client with these credentials, else all that have none. Unlike
    /// a fingerprint it is equal for all keys, or nothing could be counted.
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

    /// How the stored fingerprint differs from that of the request; `names` are those of the credential headers that count.
    pub(crate) fn compare(&self, own: &Fingerprints, stored: Fingerprint, names: &[HeaderName]) -> Compared {
        let (id, key) = (stored.key_id(), own.record_key());
        let unkeyed = (id == KeyId::UNKEYED).then(|| Salt::unkeyed(key.as_str()));
        let secrets = self.secret.iter().chain(self.sealing.iter().flat_map(SealingKeys::all));
        let keyed = secrets.filter(|secret| secret.key_id() == id).map(|secret| secret.salt(key));
        own.compare(stored, unkeyed.into_iter().chain(keyed), names)
    }

    pub(crate) fn is_same(&self, own: &Fingerprints, stored: Fingerprint) -> bool {
        matches!(self.compare(own, stored, &[]), Compared::Same)
    }

    /// What the request of this digest derives keys for other services from.
    pub(crate) fn downstream(&self, request: [u8; 32]) -> Downstream {
        Downstream { request, secret: self.secret.clone() }
    }

    fn accepts_unsealed(&self) -> bool {
        self.only_opens || self.accept_unsealed_until.is_some_and(|until| SystemTime::now() < until)
    }

    /// The keys that write, if any do.
    fn sealing_for_writing(&self) -> Option<&SealingKeys> {
        self.sealing.as_ref().filter(|_| !self.only_opens)
    }

    /// The record as the store gets it, which keeps it for the `ttl`. Of a `ttl` that is not known yet, nothing is sealed.
    pub(crate) fn seal<'r>(&self, place: Place<'_>, record: &'r Record, ttl: Option<Duration>) -> Cow<'r, Record> {
        match self.sealing_for_writing() {
            Some(sealing) => Cow::Owned(sealing.seal(place, record, ttl)),
            None => in_clear(record).map_or(Cow::Borrowed(record), Cow::Owned),
        }
    }

    /// What the store gets if a handler commits its transaction itself, so that its response was rejected: a record without one.
    pub(crate) fn without_response(&self, place: Place<'_>, fingerprint: Fingerprint) -> Record {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let record = Record::new(status, Vec::new(), RecordedBody::NotRecorded, fingerprint, now_in_millis());
        self.seal(place, &record, None).into_owned()
    }

    /// The record as it was before it was sealed.
    ///
    /// Where records are sealed, one that is not was planted or changed, or recorded before the registry had a key.
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

/// What keys for other services are derived from.
#[derive(Default)]
pub(crate) struct Downstream {
    request: [u8; 32],
    secret: Option<SealingKey>,
}

impl Downstream {
    pub(crate) fn key(&self, pieces: &[&[u8]]) -> [u8; 32] {
        let pieces = [&[self.request.as_slice()], pieces].concat();
        match &self.secret {
            Some(secret) => secret.downstream_key(&pieces),
            None => pieces.iter().fold(Sha256::new(), Digest::chain_update).finalize().into(),
        }
    }
}

/// There is no key to be had.
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
