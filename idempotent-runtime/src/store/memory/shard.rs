//! A part of the table: its entries, and the order in which they expire.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashTable;

use super::packed::Packed;
use crate::store::{AfterCrash, Claim, ClaimRequest, Entry, EntryState, Held, Token};
use crate::{Fingerprint, Record, RecordKey};

/// What an entry is counted for beside its key and payload: what it takes at most, with its places in table and queue.
pub(super) const ENTRY_BYTES: usize = 192;

/// A time since the store began.
pub(super) type Moment = Duration;

#[derive(Default)]
pub(super) struct Shard {
    slots: HashTable<Slot>,
    /// One for each slot, and those of slots that are gone.
    expiries: BinaryHeap<Reverse<Expiry>>,
}

/// Small, since a growing table moves them: what is known without a look at the entry itself.
struct Slot {
    tag: Tag,
    /// When the entry is looked at next; it may live on by then.
    due: Tick,
    entry: Stored,
}

enum Stored {
    Claimed(Box<Claimed>),
    Completed(Packed),
    /// With a body that stands apart.
    Large(Box<(Packed, Bytes)>),
}

struct Claimed {
    key: RecordKey,
    token: Token,
    fingerprint: Fingerprint,
    attempt: u32,
    lease_until: Moment,
    ttl: Duration,
    expires_at: Moment,
}

/// A part of the key's hash: what the table and the queue know an entry by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag(pub(super) u32);

impl Tag {
    /// Spread over all bits, since the table uses those at both ends.
    fn hash(self) -> u64 {
        u64::from(self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// A moment in coarse steps, rounded up; the last one stands for all that are later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Tick(u32);

impl Tick {
    const MILLIS: u32 = 64;

    fn after(moment: Moment) -> Self {
        Self(u32::try_from(moment.as_millis() / u128::from(Self::MILLIS) + 1).unwrap_or(u32::MAX))
    }

    fn moment(self) -> Moment {
        Duration::from_millis(u64::from(self.0) * u64::from(Self::MILLIS))
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Expiry {
    due: Tick,
    tag: Tag,
}

pub(super) enum Stands {
    Absent,
    Answer(Claim),
    /// The claim was taken over.
    TakenOver {
        attempt: u32,
    },
}

impl Shard {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Answers a claim as far as that needs no room.
    pub(super) fn claim(&mut self, tag: Tag, key: &RecordKey, request: &ClaimRequest, now: Moment) -> Stands {
        let Some(slot) = self.find(tag, key).filter(|slot| slot.entry.expires_at() > now) else {
            return Stands::Absent;
        };
        let claimed = match &mut slot.entry {
            Stored::Claimed(claimed) => claimed,
            Stored::Completed(packed) => return Stands::Answer(Claim::Completed(packed.record(None))),
            Stored::Large(large) => return Stands::Answer(Claim::Completed(large.0.record(Some(&large.1)))),
        };
        let fingerprint = claimed.fingerprint;
        if claimed.token == request.token {
            return Stands::Answer(Claim::Acquired { attempt: claimed.attempt });
        }
        if now < claimed.lease_until {
            return Stands::Answer(Claim::InFlight { fingerprint });
        }
        if request.after_crash == AfterCrash::Refuse || fingerprint != request.fingerprint {
            return Stands::Answer(Claim::Lapsed { fingerprint });
        }
        let attempt = claimed.attempt + 1;
        **claimed = Claimed::new(key, request, attempt, now);
        let sooner = slot.due_sooner();
        self.queue(sooner);
        Stands::TakenOver { attempt }
    }

    /// Enters the first claim of a key under which nothing stands.
    pub(super) fn insert(&mut self, tag: Tag, key: &RecordKey, request: &ClaimRequest, now: Moment) {
        let claimed = Claimed::new(key, request, 1, now);
        let due = Tick::after(claimed.expires_at);
        let slot = Slot { tag, due, entry: Stored::Claimed(Box::new(claimed)) };
        self.slots.insert_unique(tag.hash(), slot, |slot| slot.tag.hash());
        self.queue(Some(Expiry { due, tag }));
    }

    pub(super) fn renew(&mut self, tag: Tag, key: &RecordKey, token: Token, lease: Duration, now: Moment) -> Held {
        let Some(slot) = self.held(tag, key, token, now) else { return Held::No };
        let Stored::Claimed(claimed) = &mut slot.entry else { return Held::No };
        claimed.lease_until = now.saturating_add(lease);
        claimed.expires_at = now.saturating_add(claimed.ttl);
        let sooner = slot.due_sooner();
        self.queue(sooner);
        Held::Yes
    }

    /// Whether the token held the claim, and what the record takes.
    pub(super) fn complete(
        &mut self,
        tag: Tag,
        key: &RecordKey,
        token: Token,
        record: &Record,
        expires_at: Moment,
        now: Moment,
    ) -> (Held, usize) {
        let Some(slot) = self.held(tag, key, token, now) else { return (Held::No, 0) };
        if !matches!(slot.entry, Stored::Claimed(_)) {
            return (Held::Yes, 0);
        }
        let before = slot.entry.bytes();
        slot.entry = match Packed::new(key, token, record, expires_at) {
            (packed, None) => Stored::Completed(packed),
            (packed, Some(body)) => Stored::Large(Box::new((packed, body))),
        };
        let bytes = slot.entry.bytes() - before;
        let sooner = slot.due_sooner();
        self.queue(sooner);
        (Held::Yes, bytes)
    }

    /// What the claim took, if the token held it.
    pub(super) fn release(&mut self, tag: Tag, key: &RecordKey, token: Token, now: Moment) -> Option<usize> {
        let held = self.held(tag, key, token, now).is_some_and(|slot| matches!(slot.entry, Stored::Claimed(_)));
        held.then(|| self.remove(tag, key).map_or(0, |(bytes, _)| bytes))
    }

    /// What the entry took, if there was one, and when it expires.
    pub(super) fn remove(&mut self, tag: Tag, key: &RecordKey) -> Option<(usize, Moment)> {
        let place = self.slots.find_entry(tag.hash(), |slot| slot.is(tag, key)).ok()?;
        let (slot, _) = place.remove();
        self.forget_the_gone();
        Some((slot.entry.bytes(), slot.entry.expires_at()))
    }

    /// How many entries were past their time, of at most `limit` that were looked at, and what they took.
    pub(super) fn remove_expired(&mut self, now: Moment, limit: usize) -> (usize, usize) {
        let (mut removed, mut bytes) = (0, 0);
        while removed < limit
            && let Some(Reverse(first)) = self.expiries.peek()
            && first.due.moment() <= now
            && let Some(Reverse(Expiry { due, tag })) = self.expiries.pop()
        {
            // Of a slot that is gone, or was entered anew, this finds nothing.
            let Ok(place) = self.slots.find_entry(tag.hash(), |slot| slot.tag == tag && slot.due == due) else {
                continue;
            };
            if place.get().entry.expires_at() <= now {
                bytes += place.remove().0.entry.bytes();
                removed += 1;
            } else {
                let slot = place.into_mut();
                slot.due = Tick::after(slot.entry.expires_at());
                let later = Expiry { due: slot.due, tag };
                self.expiries.push(Reverse(later));
            }
        }
        if self.slots.is_empty() {
            // To shrink a table is to move its entries, a pause that grows with them; an empty one costs nothing to drop.
            *self = Self::default();
        }
        (removed, bytes)
    }

    /// When something expires next, or later.
    pub(super) fn next_expiry(&self) -> Option<Moment> {
        self.expiries.peek().map(|Reverse(first)| first.due.moment())
    }

    pub(super) fn entry(&self, tag: Tag, key: &RecordKey, now: Moment) -> Option<Entry> {
        self.slots.find(tag.hash(), |slot| slot.is(tag, key))?.entry.told(now)
    }

    pub(super) fn entries(&self, now: Moment) -> impl Iterator<Item = Entry> {
        self.slots.iter().filter_map(move |slot| slot.entry.told(now))
    }

    fn find(&mut self, tag: Tag, key: &RecordKey) -> Option<&mut Slot> {
        self.slots.find_mut(tag.hash(), |slot| slot.is(tag, key))
    }

    fn held(&mut self, tag: Tag, key: &RecordKey, token: Token, now: Moment) -> Option<&mut Slot> {
        self.find(tag, key).filter(|slot| slot.entry.token() == token && slot.entry.expires_at() > now)
    }

    fn queue(&mut self, expiry: Option<Expiry>) {
        if let Some(expiry) = expiry {
            self.expiries.push(Reverse(expiry));
            self.forget_the_gone();
        }
    }

    /// Keys that are claimed and released all the time must not fill the queue.
    fn forget_the_gone(&mut self) {
        if self.expiries.len() > 2 * self.slots.len() + 64 {
            self.expiries = self.slots.iter().map(|&Slot { tag, due, .. }| Reverse(Expiry { due, tag })).collect();
        }
    }
}

impl Slot {
    /// The look that the entry needs before the next one, if any. Where it expires later, that is found out then.
    fn due_sooner(&mut self) -> Option<Expiry> {
        let due = Tick::after(self.entry.expires_at());
        (due < self.due).then(|| {
            self.due = due;
            Expiry { due, tag: self.tag }
        })
    }

    fn is(&self, tag: Tag, key: &RecordKey) -> bool {
        self.tag == tag && self.entry.key() == key.as_str().as_bytes()
    }
}

impl Claimed {
    fn new(key: &RecordKey, request: &ClaimRequest, attempt: u32, now: Moment) -> Self {
        Self {
            key: key.clone(),
            token: request.token,
            fingerprint: request.fingerprint,
            attempt,
            lease_until: now.saturating_add(request.lease),
            ttl: request.ttl,
            expires_at: now.saturating_add(request.ttl),
        }
    }
}

impl Stored {
    fn key(&self) -> &[u8] {
        match self {
            Self::Claimed(claimed) => claimed.key.as_str().as_bytes(),
            Self::Completed(packed) => packed.key(),
            Self::Large(large) => large.0.key(),
        }
    }

    fn token(&self) -> Token {
        match self {
            Self::Claimed(claimed) => claimed.token,
            Self::Completed(packed) => packed.token(),
            Self::Large(large) => large.0.token(),
        }
    }

    fn expires_at(&self) -> Moment {
        match self {
            Self::Claimed(claimed) => claimed.expires_at,
            Self::Completed(packed) => packed.expires_at(),
            Self::Large(large) => large.0.expires_at(),
        }
    }

    /// What the entry is counted for.
    fn bytes(&self) -> usize {
        ENTRY_BYTES
            + match self {
                Self::Claimed(claimed) => claimed.key.as_str().len(),
                Self::Completed(packed) => packed.variable_bytes(),
                Self::Large(large) => large.0.variable_bytes() + large.1.len(),
            }
    }

    /// For operators, if it still lives.
    fn told(&self, now: Moment) -> Option<Entry> {
        let expires_in = self.expires_at().checked_sub(now).filter(|left| !left.is_zero())?;
        let completed = |packed: &Packed, apart| EntryState::Completed {
            status: packed.status(),
            body_bytes: packed.body_length(apart),
            recorded_at: packed.recorded_at(),
        };
        let (fingerprint, state) = match self {
            Self::Claimed(claimed) => {
                let lease = claimed.lease_until.checked_sub(now).filter(|left| !left.is_zero());
                (claimed.fingerprint, EntryState::Claimed { attempt: claimed.attempt, lease })
            }
            Self::Completed(packed) => (packed.fingerprint(), completed(packed, None)),
            Self::Large(large) => (large.0.fingerprint(), completed(&large.0, Some(&large.1))),
        };
        let key = str::from_utf8(self.key()).ok().and_then(|text| RecordKey::parse(text).ok());
        Some(Entry { key: key.expect("it was packed from a record key"), fingerprint, state, expires_in })
    }
}
