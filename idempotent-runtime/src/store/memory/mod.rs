//! The in-process store: for tests, and for one process that may forget its keys when it ends.

mod shard;
mod sweeper;

use std::hash::BuildHasher;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use self::shard::{Shard, Stands, State};
use self::sweeper::Sweeper;
use super::{Claim, ClaimRequest, Cursor, Entry, Held, Page, Store, StoreError, Token};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::tokio::sync::Notify;
use crate::sync::tokio::time::Instant;
use crate::sync::{KeyHasher, Mutex, MutexGuard};
use crate::{Record, RecordKey};

/// Keeps claims and records in this process, bounded by bytes.
///
/// Nothing that is alive is ever evicted: a full store refuses new claims. The record of a claim that was granted is
/// always taken, so the bound can be passed by the responses of the requests in flight at that moment, each at most
/// `max_body` of its handler. What is past its time to live is freed by a task of the store's own, in small batches.
///
/// Time is [`tokio::time`], so that a test can pause and advance it. A clone is cheap and shares everything.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::store::MemoryStore;
///
/// let store = MemoryStore::builder().max_bytes(16 * 1024 * 1024).build();
/// assert_eq!(store.used_bytes(), 0);
/// ```
#[derive(Clone)]
pub struct MemoryStore(Arc<Inner>);

/// Collects the options of a [`MemoryStore`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct MemoryStoreBuilder {
    max_bytes: usize,
}

impl MemoryStoreBuilder {
    /// The bytes that keys, headers, bodies and a fixed cost of 256 bytes an entry and 72 bytes a header line may take;
    /// 256 MiB by default.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// The store.
    pub fn build(self) -> MemoryStore {
        MemoryStore(Arc::new(Inner {
            hasher: KeyHasher::default(),
            shards: std::array::from_fn(|_| Mutex::default()),
            used_bytes: AtomicUsize::new(0),
            max_bytes: self.max_bytes,
            sweeper: Mutex::default(),
            earlier: Arc::default(),
        }))
    }
}

impl Default for MemoryStoreBuilder {
    fn default() -> Self {
        Self { max_bytes: 256 * 1024 * 1024 }
    }
}

impl MemoryStore {
    /// A store of at most 256 MiB.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A store with options to follow.
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder::default()
    }

    /// What keys, headers, bodies and the fixed cost of the entries take now.
    pub fn used_bytes(&self) -> usize {
        self.0.used_bytes.load(Ordering::Relaxed)
    }

    /// How many claims and records are kept, those included that are past their time and not freed yet.
    pub fn len(&self) -> usize {
        self.0.shards.iter().map(|shard| lock(shard).entries.len()).sum()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore").field("used_bytes", &self.used_bytes()).finish_non_exhaustive()
    }
}

/// A table that grows moves its entries: with many small ones, no request waits for a large move.
const SHARDS: usize = if cfg!(all(test, shuttle)) { 2 } else { 64 };

/// How many expired entries are freed while one lock is held.
const BATCH: usize = 64;

/// What an entry costs beside its key and payload: its places in the table and in the queue of expiries.
const ENTRY_BYTES: usize = 256;

struct Inner {
    hasher: KeyHasher,
    shards: [Mutex<Shard>; SHARDS],
    used_bytes: AtomicUsize,
    max_bytes: usize,
    sweeper: Mutex<Sweeper>,
    /// Apart from the rest, so that the sweeper can sleep without holding the store.
    earlier: Arc<Notify>,
}

impl Store for MemoryStore {
    async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        let now = Instant::now();
        match self.0.claim(key, &request, now) {
            // What has expired in the other shards may be room enough.
            Err(StoreError::Full) => {
                self.0.sweep_batch(now);
                self.0.claim(key, &request, now)
            }
            claim => claim,
        }
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let now = Instant::now();
        let mut shard = self.0.shard(key);
        let Some(stored) = shard.claimed_by(key, token, now) else { return Ok(Held::No) };
        let State::Claimed { lease_until, ttl, .. } = &mut stored.state else { return Ok(Held::No) };
        *lease_until = now + lease;
        let expires_at = now + *ttl;
        shard.expire_at(key, expires_at);
        Ok(Held::Yes)
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        let now = Instant::now();
        let expires_at = now + ttl;
        {
            let mut shard = self.0.shard(key);
            let Some(stored) = shard.held_by(key, token, now) else { return Ok(Held::No) };
            if matches!(stored.state, State::Completed(_)) {
                return Ok(Held::Yes);
            }
            self.0.used_bytes.fetch_add(stored.complete(record), Ordering::Relaxed);
            shard.expire_at(key, expires_at);
        }
        self.0.sweep_at(expires_at);
        Ok(Held::Yes)
    }

    async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        let mut shard = self.0.shard(key);
        if shard.claimed_by(key, token, Instant::now()).is_none() {
            return Ok(Held::No);
        }
        self.0.remove(&mut shard, key);
        Ok(Held::Yes)
    }

    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        let now = Instant::now();
        let shard = self.0.shard(key);
        Ok(shard.entries.get(key).and_then(|stored| stored.entry(key, now)))
    }

    async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        let now = Instant::now();
        let mut shard = self.0.shard(key);
        let lived = shard.entries.get(key).is_some_and(|stored| stored.expires_at > now);
        self.0.remove(&mut shard, key);
        Ok(lived)
    }

    async fn sweep(&self) -> Result<usize, StoreError> {
        let now = Instant::now();
        for shard in &self.0.shards {
            let freed = self.0.free_expired(&mut lock(shard), now, BATCH);
            if freed > 0 {
                return Ok(freed);
            }
        }
        Ok(0)
    }

    /// Shard by shard, and within a shard in the order in which the entries were claimed.
    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        let now = Instant::now();
        let (first_shard, mut first_number) = match &cursor {
            None => (0, 0),
            Some(cursor) => place(cursor).ok_or_else(|| StoreError::unavailable("the cursor is not of this store"))?,
        };
        let mut entries = Vec::new();
        for (index, shard) in self.0.shards.iter().enumerate().skip(first_shard) {
            let shard = lock(shard);
            let mut living: Vec<_> = shard
                .entries
                .iter()
                .filter(|(_, stored)| stored.number >= first_number)
                .filter_map(|(key, stored)| Some((stored.number, stored.entry(key, now)?)))
                .collect();
            living.sort_by_key(|&(number, _)| number);
            for (number, entry) in living {
                if entries.len() == limit {
                    let next = Some(Cursor(format!("{index}:{number}")));
                    return Ok(Page { entries, next, ..Page::default() });
                }
                entries.push(entry);
            }
            first_number = 0;
        }
        Ok(Page { entries, ..Page::default() })
    }
}

fn place(cursor: &Cursor) -> Option<(usize, u64)> {
    let (shard, number) = cursor.0.split_once(':')?;
    Some((shard.parse().ok().filter(|&shard| shard < SHARDS)?, number.parse().ok()?))
}

impl Inner {
    fn claim(self: &Arc<Self>, key: &RecordKey, request: &ClaimRequest, now: Instant) -> Result<Claim, StoreError> {
        let mut shard = self.shard(key);
        self.free_expired(&mut shard, now, BATCH);
        let attempt = match shard.stands(key, request, now) {
            Stands::Answer(claim) => return Ok(claim),
            Stands::Lapsed { attempt } => {
                shard.take_over(key, request, attempt + 1, now);
                attempt + 1
            }
            Stands::Absent => {
                // More may have expired than one batch frees.
                self.remove(&mut shard, key);
                let bytes = ENTRY_BYTES + 2 * key.as_str().len();
                if !self.reserve(bytes) {
                    return Err(StoreError::Full);
                }
                shard.insert(key, request, bytes, now);
                1
            }
        };
        drop(shard);
        self.sweep_at(now + request.ttl);
        Ok(Claim::Acquired { attempt })
    }

    fn shard(&self, key: &RecordKey) -> MutexGuard<'_, Shard> {
        lock(&self.shards[usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default()])
    }

    fn reserve(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|&sum| sum <= self.max_bytes);
        self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    fn remove(&self, shard: &mut Shard, key: &RecordKey) {
        self.used_bytes.fetch_sub(shard.remove(key), Ordering::Relaxed);
    }

    fn free_expired(&self, shard: &mut Shard, now: Instant, limit: usize) -> usize {
        let (freed, bytes) = shard.remove_expired(now, limit);
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        freed
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The sweeper finds nothing left to sweep, and ends.
        self.earlier.notify_one();
    }
}

/// No code of ours panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
