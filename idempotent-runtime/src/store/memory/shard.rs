//! A part of the table: its entries, and the order in which they expire.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::key::RecordKey;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::claim_decision::{Decision, decide};
use crate::store::entry::Entry;
use crate::store::memory::shares::{Counted, Share};
use crate::store::memory::stored::{Moment, NEVER, Stored, StoredClaim};
use crate::store::resolution::{Resolution, Resolved};

pub(super) struct Shard {
    slots: HashTable<Slot>,
    /// The expiries of all slots that expire, and of some slots that are gone.
    expiries: BinaryHeap<Reverse<Expiry>>,
    /// The first one of the expiries. Each claim reads it, and the queue itself would be read from slow memory.
    first_due: Tick,
    /// The tags of the claims, for operators. Most claims end soon, so a search begins at the last ones, and few exist at
    /// a time.
    claims: SmallVec<[Tag; 4]>,
}

impl Default for Shard {
    fn default() -> Self {
        Self { slots: HashTable::new(), expiries: BinaryHeap::new(), first_due: Tick::NEVER, claims: SmallVec::new() }
    }
}

/// A slot is small, because a growing table moves it. It has the values that are needed without reading the entry.
struct Slot {
    tag: Tag,
    /// The time at which the entry is checked next. Its expiry may be later than that.
    due: Tick,
    entry: Stored,
}

/// A part of the key's hash, by which the table and the queue identify an entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag(pub(super) u32);

impl Tag {
    /// Spreads the tag over all bits, because the table uses the bits at both ends.
    fn hash(self) -> u64 {
        u64::from(self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// A moment in coarse steps, rounded up. The last one means eight years after the store's creation or later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Tick(u32);

impl Tick {
    const MILLIS: u32 = 64;
    /// A time that no process reaches. It is never queued.
    const NEVER: Self = Self(u32::MAX);

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

/// The result of the part of a claim that needs no room.
pub(super) enum Claiming {
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

    /// Answers a claim as far as that needs no room for a new entry.
    pub(super) fn claim(&mut self, tag: Tag, key: &RecordKey, request: &ClaimRequest, now: Moment) -> Claiming {
        let Some(slot) = self.find(tag, key).filter(|slot| slot.entry.expires_at() > now) else {
            return Claiming::Absent;
        };
        let attempt = match decide(Some(slot.entry.stored_state(now)), request) {
            Decision::Answer(claim) => return Claiming::Answer(claim),
            Decision::Keep { fingerprint, .. } => {
                slot.entry.never_expire();
                return Claiming::Answer(Claim::Lapsed { fingerprint });
            }
            Decision::Take { attempt } => attempt,
        };
        slot.entry = Stored::claimed(StoredClaim::new(key, request, slot.entry.share(), attempt, now));
        let sooner = slot.due_sooner();
        self.queue(sooner);
        Claiming::TakenOver { attempt }
    }

    /// Inserts the first claim of a key that has no entry.
    pub(super) fn insert(&mut self, tag: Tag, key: &RecordKey, request: &ClaimRequest, share: Share, now: Moment) {
        let claimed = StoredClaim::new(key, request, share, 1, now);
        let due = Tick::after(claimed.expires_at);
        self.claims.push(tag);
        let slot = Slot { tag, due, entry: Stored::claimed(claimed) };
        self.slots.insert_unique(tag.hash(), slot, |slot| slot.tag.hash());
        self.queue(Some(Expiry { due, tag }));
    }

    pub(super) fn renew(&mut self, tag: Tag, key: &RecordKey, token: Token, lease: Duration, now: Moment) -> Held {
        let Some(slot) = self.held(tag, key, token, now) else { return Held::No };
        let Some(claimed) = slot.entry.claim_mut() else { return Held::No };
        claimed.lease_until = now.saturating_add(lease);
        if claimed.expires_at != NEVER {
            claimed.expires_at = now.saturating_add(claimed.ttl);
        }
        let sooner = slot.due_sooner();
        self.queue(sooner);
        Held::Yes
    }

    /// Returns whether the token held the claim, and the bytes that the record takes in addition.
    pub(super) fn complete(
        &mut self,
        tag: Tag,
        key: &RecordKey,
        token: Token,
        record: &Record,
        expires_at: Moment,
        now: Moment,
    ) -> (Held, Counted) {
        let Some(slot) = self.held(tag, key, token, now) else { return (Held::No, Counted::NOTHING) };
        if !slot.entry.is_claimed() {
            return (Held::Yes, Counted::NOTHING);
        }
        let Counted { share, bytes: before } = slot.entry.counted();
        let completed = Stored::completed(key, token, share, record, expires_at);
        let more = Counted { share, bytes: completed.bytes() - before };
        slot.entry = completed;
        let sooner = slot.due_sooner();
        self.leave_claims(tag);
        self.queue(sooner);
        (Held::Yes, more)
    }

    /// Ends a claim whose lease has expired. Returns the result, the bytes of the new entry and those of the former
    /// one.
    pub(super) fn resolve(
        &mut self,
        tag: Tag,
        key: &RecordKey,
        token: Token,
        resolution: &Resolution,
        now: Moment,
    ) -> (Resolved, Counted, Counted) {
        let record = match resolution {
            Resolution::Executed { token, record, ttl } => Some((*token, record, now.saturating_add(*ttl))),
            Resolution::NotExecuted => None,
        };
        let Some(slot) = self.held(tag, key, token, now).filter(|slot| slot.entry.is_claimed()) else {
            let is_repeated = record.is_some_and(|(own, ..)| self.is_completed_by(tag, key, own, now));
            let resolved = if is_repeated { Resolved::Yes } else { Resolved::ChangedHands };
            return (resolved, Counted::NOTHING, Counted::NOTHING);
        };
        if slot.entry.claim_mut().is_some_and(|claimed| claimed.lease_until > now) {
            return (Resolved::StillRunning, Counted::NOTHING, Counted::NOTHING);
        }
        let Some((own, record, expires_at)) = record else {
            let less = self.remove(tag, key).map_or(Counted::NOTHING, |(less, _)| less);
            return (Resolved::Yes, Counted::NOTHING, less);
        };
        let before = slot.entry.counted();
        let completed = Stored::completed(key, own, before.share, record, expires_at);
        let after = completed.counted();
        slot.entry = completed;
        let sooner = slot.due_sooner();
        self.leave_claims(tag);
        self.queue(sooner);
        (Resolved::Yes, after, before)
    }

    /// Sets the expiry of the key's record, if it has one.
    pub(super) fn extend(&mut self, tag: Tag, key: &RecordKey, expires_at: Moment, now: Moment) -> Held {
        let Some(slot) = self.find(tag, key).filter(|slot| slot.entry.expires_at() > now) else { return Held::No };
        if !slot.entry.record_expires_at(expires_at) {
            return Held::No;
        }
        let sooner = slot.due_sooner();
        self.queue(sooner);
        Held::Yes
    }

    /// Removes the claim if the token held it. Returns the bytes that it took.
    pub(super) fn release(&mut self, tag: Tag, key: &RecordKey, token: Token, now: Moment) -> Option<Counted> {
        let held = self.held(tag, key, token, now).is_some_and(|slot| slot.entry.is_claimed());
        held.then(|| self.remove(tag, key).map_or(Counted::NOTHING, |(less, _)| less))
    }

    /// Returns whether the key has the record of this token.
    pub(super) fn is_completed_by(&mut self, tag: Tag, key: &RecordKey, token: Token, now: Moment) -> bool {
        self.held(tag, key, token, now).is_some_and(|slot| !slot.entry.is_claimed())
    }

    /// Removes the entry, if there is one. Returns the bytes that it took, and its expiry.
    pub(super) fn remove(&mut self, tag: Tag, key: &RecordKey) -> Option<(Counted, Moment)> {
        let place = self.slots.find_entry(tag.hash(), |slot| slot.is(tag, key)).ok()?;
        let (slot, _) = place.remove();
        if slot.entry.is_claimed() {
            self.leave_claims(tag);
        }
        self.forget_the_gone();
        Some((slot.entry.counted(), slot.entry.expires_at()))
    }

    /// Removes at most `limit` expired entries. Returns their number, and calls `freed` with the bytes of each.
    pub(super) fn remove_expired(&mut self, now: Moment, limit: usize, freed: impl Fn(Counted)) -> usize {
        if self.first_due.moment() > now {
            self.forget_if_empty();
            return 0;
        }
        let mut removed = 0;
        while removed < limit
            && let Some(Reverse(first)) = self.expiries.peek()
            && first.due.moment() <= now
            && let Some(Reverse(Expiry { due, tag })) = self.expiries.pop()
        {
            // A slot that is gone or was replaced is not found.
            let Ok(place) = self.slots.find_entry(tag.hash(), |slot| slot.tag == tag && slot.due == due) else {
                continue;
            };
            if place.get().entry.expires_at() <= now {
                let entry = place.remove().0.entry;
                freed(entry.counted());
                removed += 1;
                if entry.is_claimed() {
                    self.leave_claims(tag);
                }
            } else {
                let slot = place.into_mut();
                slot.due = Tick::after(slot.entry.expires_at());
                let later = Expiry { due: slot.due, tag };
                self.queue(Some(later));
            }
        }
        self.first_due = self.first_queued();
        self.forget_if_empty();
        removed
    }

    /// Frees the memory of a shard whose entries are all gone, and the expiries of entries that were released. Shrinking a
    /// table moves its entries, a pause that grows with their number. Dropping an empty table costs nothing.
    fn forget_if_empty(&mut self) {
        if self.slots.is_empty() && self.slots.capacity() > 0 {
            *self = Self::default();
        }
    }

    /// Returns the time of the next queued check, which is at most one tick after the next expiry.
    pub(super) fn next_expiry(&self) -> Option<Moment> {
        (self.first_due != Tick::NEVER).then(|| self.first_due.moment())
    }

    pub(super) fn entry(&self, tag: Tag, key: &RecordKey, now: Moment) -> Option<Entry> {
        self.slots.find(tag.hash(), |slot| slot.is(tag, key))?.entry.entry(now)
    }

    pub(super) fn entries(&self, now: Moment) -> Vec<Entry> {
        self.slots.iter().filter_map(|slot| slot.entry.entry(now)).collect()
    }

    /// Returns the entries of the claims, without reading any record.
    pub(super) fn claims(&self, now: Moment) -> Vec<Entry> {
        let mut tags = self.claims.clone();
        tags.sort_unstable();
        // Two keys may have the same tag.
        tags.dedup();
        let slots =
            tags.into_iter().flat_map(|tag| self.slots.iter_hash(tag.hash()).filter(move |slot| slot.tag == tag));
        slots.filter(|slot| slot.entry.is_claimed()).filter_map(|slot| slot.entry.entry(now)).collect()
    }

    fn find(&mut self, tag: Tag, key: &RecordKey) -> Option<&mut Slot> {
        self.slots.find_mut(tag.hash(), |slot| slot.is(tag, key))
    }

    fn held(&mut self, tag: Tag, key: &RecordKey, token: Token, now: Moment) -> Option<&mut Slot> {
        self.find(tag, key).filter(|slot| slot.entry.token() == token && slot.entry.expires_at() > now)
    }

    fn queue(&mut self, expiry: Option<Expiry>) {
        if let Some(expiry) = expiry.filter(|expiry| expiry.due != Tick::NEVER) {
            self.first_due = self.first_due.min(expiry.due);
            self.expiries.push(Reverse(expiry));
            self.forget_the_gone();
        }
    }

    fn first_queued(&self) -> Tick {
        self.expiries.peek().map_or(Tick::NEVER, |Reverse(first)| first.due)
    }

    fn leave_claims(&mut self, tag: Tag) {
        if let Some(place) = self.claims.iter().rposition(|&claimed| claimed == tag) {
            self.claims.swap_remove(place);
        }
    }

    /// Drops expiries of slots that are gone. Otherwise keys that are claimed and released all the time would fill the
    /// queue.
    fn forget_the_gone(&mut self) {
        if self.expiries.len() > 2 * self.slots.len() + 64 {
            let expiring = self.slots.iter().filter(|slot| slot.due != Tick::NEVER);
            self.expiries = expiring.map(|&Slot { tag, due, .. }| Reverse(Expiry { due, tag })).collect();
            self.first_due = self.first_queued();
        }
    }
}

impl Slot {
    /// Returns an earlier check if the entry expires before the one that is queued. A later expiry is noticed at that
    /// check.
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

#[cfg(test)]
mod tests;
