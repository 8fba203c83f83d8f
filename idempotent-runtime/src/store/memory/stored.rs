//! An entry of the table: a claim or a record.

use std::time::Duration;

use bytes::Bytes;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::policy::values::AfterCrash;
use crate::record::Record;
use crate::store::claim::{ClaimRequest, Token};
use crate::store::claim_decision::{ExistingClaim, StoredState};
use crate::store::entry::{Entry, EntryState};
use crate::store::memory::packed::Packed;
use crate::store::memory::shares::{Counted, Share};

/// The bytes that an entry counts for beside its key and payload. This is the most that an entry takes, with its places
/// in table and queue. Only the first entry of a shard takes somewhat more.
pub(super) const ENTRY_BYTES: usize = 192;

/// A time since the store began.
pub(super) type Moment = Duration;

/// The expiry of an entry that never expires.
pub(super) const NEVER: Moment = Moment::MAX;

/// An entry of the table.
pub(super) enum Stored {
    Completed(Packed),
    /// A claim or a large record. One box for both keeps the enum as small as a packed record.
    Rare(Box<Rare>),
}

pub(super) enum Rare {
    Claimed(StoredClaim),
    /// A record with a body in an allocation of its own.
    Large(Packed, Bytes),
}

enum State<'a> {
    Claimed(&'a StoredClaim),
    /// A record, and its body if that has an allocation of its own.
    Completed(&'a Packed, Option<&'a Bytes>),
}

pub(super) struct StoredClaim {
    key: RecordKey,
    token: Token,
    fingerprint: Fingerprint,
    attempt: u32,
    share: Share,
    pub(super) lease_until: Moment,
    pub(super) ttl: Duration,
    pub(super) expires_at: Moment,
}

impl StoredClaim {
    pub(super) fn new(key: &RecordKey, request: &ClaimRequest, share: Share, attempt: u32, now: Moment) -> Self {
        Self {
            share,
            key: key.clone(),
            token: request.token,
            fingerprint: request.fingerprint,
            attempt,
            lease_until: now.saturating_add(request.lease),
            ttl: request.ttl,
            expires_at: match request.after_crash {
                AfterCrash::Rerun => now.saturating_add(request.ttl),
                AfterCrash::Reject => NEVER,
            },
        }
    }
}

impl Stored {
    pub(super) fn claimed(claimed: StoredClaim) -> Self {
        Self::Rare(Box::new(Rare::Claimed(claimed)))
    }

    pub(super) fn completed(key: &RecordKey, token: Token, share: Share, record: &Record, expires_at: Moment) -> Self {
        match Packed::new(key, token, share, record, expires_at) {
            (packed, None) => Self::Completed(packed),
            (packed, Some(body)) => Self::Rare(Box::new(Rare::Large(packed, body))),
        }
    }

    fn state(&self) -> State<'_> {
        match self {
            Self::Completed(packed) => State::Completed(packed, None),
            Self::Rare(rare) => match &**rare {
                Rare::Claimed(claimed) => State::Claimed(claimed),
                Rare::Large(packed, body) => State::Completed(packed, Some(body)),
            },
        }
    }

    pub(super) fn stored_state(&self, now: Moment) -> StoredState {
        match self.state() {
            State::Completed(packed, apart) => StoredState::Completed(packed.record(apart)),
            State::Claimed(claimed) => StoredState::Claimed(ExistingClaim {
                token: claimed.token,
                fingerprint: claimed.fingerprint,
                attempt: claimed.attempt,
                leased: now < claimed.lease_until,
                expires: !self.is_endless(),
            }),
        }
    }

    pub(super) fn claim_mut(&mut self) -> Option<&mut StoredClaim> {
        match self {
            Self::Rare(rare) => match &mut **rare {
                Rare::Claimed(claimed) => Some(claimed),
                Rare::Large(..) => None,
            },
            Self::Completed(_) => None,
        }
    }

    /// Returns whether the entry is a claim that never expires. A record always expires, even if its ttl is centuries.
    pub(super) fn is_endless(&self) -> bool {
        matches!(self.state(), State::Claimed(claimed) if claimed.expires_at == NEVER)
    }

    /// Sets the expiry if the entry is a record. Returns false if it is a claim.
    pub(super) fn record_expires_at(&mut self, moment: Moment) -> bool {
        match self {
            Self::Completed(packed) => packed.expire_at(moment),
            Self::Rare(rare) => match &mut **rare {
                Rare::Large(packed, _) => packed.expire_at(moment),
                Rare::Claimed(_) => return false,
            },
        }
        true
    }

    pub(super) fn never_expire(&mut self) {
        if let Some(claimed) = self.claim_mut() {
            claimed.expires_at = NEVER;
        }
    }

    pub(super) fn is_claimed(&self) -> bool {
        matches!(self.state(), State::Claimed(_))
    }

    pub(super) fn key(&self) -> &[u8] {
        match self.state() {
            State::Claimed(claimed) => claimed.key.as_str().as_bytes(),
            State::Completed(packed, _) => packed.key(),
        }
    }

    pub(super) fn token(&self) -> Token {
        match self.state() {
            State::Claimed(claimed) => claimed.token,
            State::Completed(packed, _) => packed.token(),
        }
    }

    pub(super) fn expires_at(&self) -> Moment {
        match self.state() {
            State::Claimed(claimed) => claimed.expires_at,
            State::Completed(packed, _) => packed.expires_at(),
        }
    }

    /// Returns the share that the entry counts for.
    pub(super) fn share(&self) -> Share {
        match self.state() {
            State::Claimed(claimed) => claimed.share,
            State::Completed(packed, _) => packed.share(),
        }
    }

    pub(super) fn counted(&self) -> Counted {
        Counted { share: self.share(), bytes: self.bytes() }
    }

    /// Returns the bytes that the entry counts for.
    pub(super) fn bytes(&self) -> usize {
        ENTRY_BYTES
            + match self.state() {
                State::Claimed(claimed) => claimed.key.as_str().len(),
                State::Completed(packed, apart) => packed.variable_bytes() + apart.map_or(0, Bytes::len),
            }
    }

    /// Returns the entry for operators if it has not expired.
    pub(super) fn entry(&self, now: Moment) -> Option<Entry> {
        let left = self.expires_at().checked_sub(now).filter(|left| !left.is_zero())?;
        let expires_in = (!self.is_endless()).then_some(left);
        let (fingerprint, state) = match self.state() {
            State::Claimed(claimed) => {
                let lease = claimed.lease_until.checked_sub(now).filter(|left| !left.is_zero());
                (claimed.fingerprint, EntryState::Claimed { attempt: claimed.attempt, lease, token: claimed.token })
            }
            State::Completed(packed, apart) => {
                let (status, body_bytes) = (packed.status(), packed.body_length(apart));
                let recorded_at = packed.recorded_at();
                (packed.fingerprint(), EntryState::Completed { status, body_bytes, recorded_at })
            }
        };
        let key = str::from_utf8(self.key()).ok().and_then(|text| text.parse().ok());
        Some(Entry { key: key.expect("it was packed from a record key"), fingerprint, state, expires_in })
    }
}
