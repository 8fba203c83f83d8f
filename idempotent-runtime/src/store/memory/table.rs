//! The entries of one store, in many shards with a lock each.

use std::hash::BuildHasher;

use crate::key::RecordKey;
use crate::store::claim::{Claim, Owner};
use crate::store::error::StoreError;
use crate::store::given_back::RememberedTokens;
use crate::store::memory::deletion_task::DeletionTask;
use crate::store::memory::shard::{Shard, Tag};
use crate::store::memory::shares::{Counted, Share, Shares};
use crate::store::memory::stored::Moment;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::tokio::time::Instant;
use crate::sync::{KeyHasher, Mutex, lock};

/// The claims and records, and the bytes that they take.
pub(super) struct Table {
    pub(super) began: Instant,
    hasher: KeyHasher,
    pub(super) shards: Box<[Mutex<Shard>]>,
    pub(super) used_bytes: AtomicUsize,
    max_bytes: usize,
    shares: Shares,
    pub(super) expired_deletion: DeletionTask,
    pub(super) given_back: RememberedTokens,
}

/// The number of shards. A table that grows, or that clears the marks of removed entries, moves all of its entries, and
/// so does a queue. With many small shards, no request waits for a large move. At ten million records, each shard has
/// 2,500.
pub(super) const SHARDS: usize = if cfg!(all(test, shuttle)) { 2 } else { 4096 };

/// The number of expired entries that are freed while one lock is held.
const BATCH: usize = 64;

impl Table {
    pub(super) fn new(max_bytes: usize, max_bytes_per_caller: usize) -> Self {
        Self {
            began: Instant::now(),
            hasher: KeyHasher::default(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            used_bytes: AtomicUsize::new(0),
            max_bytes,
            shares: Shares::new(max_bytes_per_caller),
            expired_deletion: DeletionTask::default(),
            given_back: RememberedTokens::default(),
        }
    }

    pub(super) fn now(&self) -> Moment {
        Instant::now().saturating_duration_since(self.began)
    }

    /// Returns the shard that holds the key's entry, if there is one, and the tag of the key.
    pub(super) fn shard_of(&self, key: &RecordKey) -> (&Mutex<Shard>, Tag) {
        let hash = self.hasher.hash_one(key);
        let [first, second, _, _, a, b, c, d] = hash.to_be_bytes();
        let shard = usize::from(u16::from_be_bytes([first, second])) % SHARDS;
        (&self.shards[shard], Tag(u32::from_be_bytes([a, b, c, d])))
    }

    pub(super) fn share(&self, owner: Option<Owner>) -> Share {
        self.shares.of(owner)
    }

    /// Counts a new entry if its owner and the store have room for it.
    pub(super) fn reserve(&self, new: Counted) -> Result<(), StoreError> {
        if !self.shares.reserve(new) {
            return Err(StoreError::OverQuota);
        }
        let fits = |used: usize| used.checked_add(new.bytes).filter(|&sum| sum <= self.max_bytes);
        self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map(drop).map_err(|_| {
            self.shares.sub(new);
            StoreError::Full
        })
    }

    /// Counts the bytes that an entry takes in addition.
    pub(super) fn add(&self, more: Counted) {
        self.shares.add(more);
        self.used_bytes.fetch_add(more.bytes, Ordering::Relaxed);
    }

    /// Counts the bytes that an entry no longer takes.
    pub(super) fn sub(&self, less: Counted) {
        self.shares.sub(less);
        self.used_bytes.fetch_sub(less.bytes, Ordering::Relaxed);
    }

    /// Removes the entry. Returns its expiry if there was one.
    pub(super) fn remove(&self, shard: &mut Shard, tag: Tag, key: &RecordKey) -> Option<Moment> {
        let (less, expires_at) = shard.remove(tag, key)?;
        self.sub(less);
        Some(expires_at)
    }

    pub(super) fn free_expired(&self, shard: &mut Shard, now: Moment) -> usize {
        shard.remove_expired(now, BATCH, |less| self.sub(less))
    }

    /// Frees expired entries shard by shard. Tries the claim again after each shard that had some, until there is room.
    pub(super) fn make_room(
        &self,
        now: Moment,
        claim: impl Fn() -> Result<Claim, StoreError>,
    ) -> Result<Claim, StoreError> {
        for shard in &self.shards {
            if self.free_expired(&mut lock(shard), now) > 0 {
                match claim() {
                    Err(StoreError::Full | StoreError::OverQuota) => {}
                    claim => return claim,
                }
            }
        }
        // The last shard that had expired entries may have been freed by another caller.
        claim()
    }
}
