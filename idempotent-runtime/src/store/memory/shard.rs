//! A part of the table: its entries, and the order in which they expire.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;

use crate::store::{AfterCrash, Claim, ClaimRequest, Entry, EntryState, Token};
use crate::sync::tokio::time::Instant;
use crate::{Fingerprint, Record, RecordKey, RecordedBody};

/// What a header line costs beside its name and value.
const HEADER_BYTES: usize = 72;

#[derive(Default)]
pub(super) struct Shard {
    pub(super) entries: HashMap<RecordKey, Stored>,
    pub(super) expiries: BTreeMap<(Instant, u64), RecordKey>,
    next_number: u64,
}

pub(super) struct Stored {
    /// Tells entries apart that expire at the same moment.
    pub(super) number: u64,
    pub(super) expires_at: Instant,
    pub(super) bytes: usize,
    token: Token,
    fingerprint: Fingerprint,
    pub(super) state: State,
}

pub(super) enum State {
    Claimed { attempt: u32, lease_until: Instant, ttl: Duration },
    Completed(Record),
}

pub(super) enum Stands {
    Absent,
    /// A claim that the request may take over.
    Lapsed {
        attempt: u32,
    },
    Answer(Claim),
}

impl Shard {
    pub(super) fn stands(&self, key: &RecordKey, request: &ClaimRequest, now: Instant) -> Stands {
        let Some(stored) = self.entries.get(key).filter(|stored| stored.expires_at > now) else {
            return Stands::Absent;
        };
        let fingerprint = stored.fingerprint;
        match &stored.state {
            State::Completed(record) => Stands::Answer(Claim::Completed(record.clone())),
            State::Claimed { attempt, .. } if stored.token == request.token => {
                Stands::Answer(Claim::Acquired { attempt: *attempt })
            }
            State::Claimed { lease_until, .. } if now < *lease_until => Stands::Answer(Claim::InFlight { fingerprint }),
            State::Claimed { attempt, .. }
                if request.after_crash == AfterCrash::Rerun && fingerprint == request.fingerprint =>
            {
                Stands::Lapsed { attempt: *attempt }
            }
            State::Claimed { .. } => Stands::Answer(Claim::Lapsed { fingerprint }),
        }
    }

    pub(super) fn insert(&mut self, key: &RecordKey, request: &ClaimRequest, bytes: usize, now: Instant) {
        let number = self.next_number;
        self.next_number += 1;
        let expires_at = now + request.ttl;
        let stored = Stored {
            number,
            expires_at,
            bytes,
            token: request.token,
            fingerprint: request.fingerprint,
            state: State::Claimed { attempt: 1, lease_until: now + request.lease, ttl: request.ttl },
        };
        self.entries.insert(key.clone(), stored);
        self.expiries.insert((expires_at, number), key.clone());
    }

    pub(super) fn take_over(&mut self, key: &RecordKey, request: &ClaimRequest, attempt: u32, now: Instant) {
        if let Some(stored) = self.entries.get_mut(key) {
            stored.token = request.token;
            stored.state = State::Claimed { attempt, lease_until: now + request.lease, ttl: request.ttl };
        }
        self.expire_at(key, now + request.ttl);
    }

    /// What the entry took.
    pub(super) fn remove(&mut self, key: &RecordKey) -> usize {
        let Some(stored) = self.entries.remove(key) else { return 0 };
        self.expiries.remove(&(stored.expires_at, stored.number));
        stored.bytes
    }

    /// How many entries of at most `limit` were past their time, and what they took.
    pub(super) fn remove_expired(&mut self, now: Instant, limit: usize) -> (usize, usize) {
        let (mut removed, mut bytes) = (0, 0);
        while removed < limit
            && let Some(first) = self.expiries.first_entry()
            && first.key().0 <= now
        {
            let key = first.remove();
            bytes += self.entries.remove(&key).map_or(0, |stored| stored.bytes);
            removed += 1;
        }
        // To shrink a table is to move its entries, a pause that grows with them; an empty one costs nothing to drop.
        if removed > 0 && self.entries.is_empty() {
            self.entries = HashMap::new();
        }
        (removed, bytes)
    }

    pub(super) fn held_by(&mut self, key: &RecordKey, token: Token, now: Instant) -> Option<&mut Stored> {
        self.entries.get_mut(key).filter(|stored| stored.token == token && stored.expires_at > now)
    }

    pub(super) fn claimed_by(&mut self, key: &RecordKey, token: Token, now: Instant) -> Option<&mut Stored> {
        self.held_by(key, token, now).filter(|stored| matches!(stored.state, State::Claimed { .. }))
    }

    pub(super) fn expire_at(&mut self, key: &RecordKey, expires_at: Instant) {
        let Some(stored) = self.entries.get_mut(key) else { return };
        if let Some(key) = self.expiries.remove(&(stored.expires_at, stored.number)) {
            stored.expires_at = expires_at;
            self.expiries.insert((expires_at, stored.number), key);
        }
    }
}

impl Stored {
    /// What the record takes beyond the claim.
    pub(super) fn complete(&mut self, record: Record) -> usize {
        let record = compact(record);
        let bytes = record.payload_bytes() + record.headers.len() * HEADER_BYTES;
        self.bytes += bytes;
        self.state = State::Completed(record);
        bytes
    }

    pub(super) fn entry(&self, key: &RecordKey, now: Instant) -> Option<Entry> {
        let expires_in = self.expires_at.checked_duration_since(now).filter(|left| !left.is_zero())?;
        let state = match &self.state {
            State::Claimed { attempt, lease_until, .. } => EntryState::Claimed {
                attempt: *attempt,
                lease: lease_until.checked_duration_since(now).filter(|left| !left.is_zero()),
            },
            State::Completed(record) => EntryState::Completed {
                status: record.status,
                body_bytes: record.body_bytes().map(|body| body.len() as u64),
                recorded_at: record.recorded_at,
            },
        };
        Some(Entry { key: key.clone(), fingerprint: self.fingerprint, state, expires_in })
    }
}

/// A slice keeps the whole buffer alive that it was cut from; a copy costs what is counted for it.
fn compact(mut record: Record) -> Record {
    for (_, value) in &mut record.headers {
        if let Ok(copy) = HeaderValue::from_bytes(value.as_bytes()) {
            *value = copy;
        }
    }
    if let RecordedBody::Whole(body) | RecordedBody::Sealed(body) = &mut record.body {
        *body = Bytes::copy_from_slice(body);
    }
    record
}
