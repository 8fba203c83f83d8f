//! The in-process store: for tests, and for one process that may forget its keys when it ends.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{AfterCrash, Claim, ClaimRequest, Cursor, Entry, EntryState, Held, Page, Store, StoreError, Token};
use crate::{Fingerprint, Record, RecordKey, RecordedBody};

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
            hasher: RandomState::new(),
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
const SHARDS: usize = 64;

/// How many expired entries are freed while one lock is held.
const BATCH: usize = 64;

/// The sweeper rests at least this long, or a busy store would wake it for every single expiry.
const PAUSE: Duration = Duration::from_millis(100);

/// What an entry costs beside its key and payload: its places in the table and in the queue of expiries.
const ENTRY_BYTES: usize = 256;

/// What a header line costs beside its name and value.
const HEADER_BYTES: usize = 72;

struct Inner {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    used_bytes: AtomicUsize,
    max_bytes: usize,
    sweeper: Mutex<Sweeper>,
    /// Apart from the rest, so that the sweeper can sleep without holding the store.
    earlier: Arc<Notify>,
}

#[derive(Default)]
struct Sweeper {
    task: Option<JoinHandle<()>>,
    wakes_at: Option<Instant>,
}

#[derive(Default)]
struct Shard {
    entries: HashMap<RecordKey, Stored>,
    expiries: BTreeMap<(Instant, u64), RecordKey>,
    next_number: u64,
}

struct Stored {
    /// Tells entries apart that expire at the same moment.
    number: u64,
    expires_at: Instant,
    bytes: usize,
    token: Token,
    fingerprint: Fingerprint,
    state: State,
}

enum State {
    Claimed { attempt: u32, lease_until: Instant, ttl: Duration },
    Completed(Record),
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
            let record = compact(record);
            let payload = record.payload_bytes() + record.headers.len() * HEADER_BYTES;
            stored.bytes += payload;
            stored.state = State::Completed(record);
            self.0.used_bytes.fetch_add(payload, Ordering::Relaxed);
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
                    return Ok(Page { entries, next: Some(Cursor(format!("{index}:{number}"))) });
                }
                entries.push(entry);
            }
            first_number = 0;
        }
        Ok(Page { entries, next: None })
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
        if let Some(stored) = shard.entries.remove(key) {
            shard.expiries.remove(&(stored.expires_at, stored.number));
            self.used_bytes.fetch_sub(stored.bytes, Ordering::Relaxed);
        }
    }

    fn free_expired(&self, shard: &mut Shard, now: Instant, limit: usize) -> usize {
        let mut freed = 0;
        while freed < limit
            && let Some(first) = shard.expiries.first_entry()
            && first.key().0 <= now
        {
            let key = first.remove();
            if let Some(stored) = shard.entries.remove(&key) {
                self.used_bytes.fetch_sub(stored.bytes, Ordering::Relaxed);
            }
            freed += 1;
        }
        // To shrink a table is to move its entries, a pause that grows with them; an empty one costs nothing to drop.
        if freed > 0 && shard.entries.is_empty() {
            shard.entries = HashMap::new();
        }
        freed
    }

    /// Sees to it that the sweeper wakes by then.
    fn sweep_at(self: &Arc<Self>, expires_at: Instant) {
        let mut sweeper = lock(&self.sweeper);
        // The task dies with the runtime that it was spawned on, which need not be the last one of the process.
        if sweeper.task.as_ref().is_none_or(JoinHandle::is_finished) {
            sweeper.wakes_at = Some(expires_at);
            sweeper.task = Some(tokio::spawn(sweep_forever(Arc::downgrade(self))));
        } else if sweeper.wakes_at.is_none_or(|wakes_at| expires_at < wakes_at) {
            sweeper.wakes_at = Some(expires_at);
            self.earlier.notify_one();
        }
    }

    /// Frees one batch of every shard; true when something is left that could be freed now.
    fn sweep_batch(&self, now: Instant) -> bool {
        let mut left = false;
        for shard in &self.shards {
            left |= self.free_expired(&mut lock(shard), now, BATCH) == BATCH;
        }
        left
    }

    fn next_expiry(&self) -> Option<Instant> {
        self.shards.iter().filter_map(|shard| lock(shard).expiries.first_key_value().map(|(&(at, _), _)| at)).min()
    }
}

/// Ends when the last handle of the store is gone.
async fn sweep_forever(store: Weak<Inner>) {
    loop {
        let Some(inner) = store.upgrade() else { return };
        while inner.sweep_batch(Instant::now()) {
            tokio::task::yield_now().await;
        }
        let wakes_at = {
            let mut sweeper = lock(&inner.sweeper);
            // Under the lock of `sweep_at`: what is entered later sees this time and corrects it.
            sweeper.wakes_at = inner.next_expiry().map(|at| at.max(Instant::now() + PAUSE));
            let Some(wakes_at) = sweeper.wakes_at else {
                sweeper.task = None;
                return;
            };
            wakes_at
        };
        let earlier = Arc::clone(&inner.earlier);
        drop(inner);
        tokio::select! {
            () = tokio::time::sleep_until(wakes_at) => {}
            () = earlier.notified() => {}
        }
    }
}

/// A slice keeps the whole buffer alive that it was cut from; a copy costs what is counted for it.
fn compact(mut record: Record) -> Record {
    for (_, value) in &mut record.headers {
        if let Ok(copy) = HeaderValue::from_bytes(value.as_bytes()) {
            *value = copy;
        }
    }
    if let RecordedBody::Whole(body) = &mut record.body {
        *body = Bytes::copy_from_slice(body);
    }
    record
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The sweeper finds nothing left to sweep, and ends.
        self.earlier.notify_one();
    }
}

enum Stands {
    Absent,
    /// A claim that the request may take over.
    Lapsed {
        attempt: u32,
    },
    Answer(Claim),
}

impl Shard {
    fn stands(&self, key: &RecordKey, request: &ClaimRequest, now: Instant) -> Stands {
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

    fn insert(&mut self, key: &RecordKey, request: &ClaimRequest, bytes: usize, now: Instant) {
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

    fn take_over(&mut self, key: &RecordKey, request: &ClaimRequest, attempt: u32, now: Instant) {
        if let Some(stored) = self.entries.get_mut(key) {
            stored.token = request.token;
            stored.state = State::Claimed { attempt, lease_until: now + request.lease, ttl: request.ttl };
        }
        self.expire_at(key, now + request.ttl);
    }

    fn held_by(&mut self, key: &RecordKey, token: Token, now: Instant) -> Option<&mut Stored> {
        self.entries.get_mut(key).filter(|stored| stored.token == token && stored.expires_at > now)
    }

    fn claimed_by(&mut self, key: &RecordKey, token: Token, now: Instant) -> Option<&mut Stored> {
        self.held_by(key, token, now).filter(|stored| matches!(stored.state, State::Claimed { .. }))
    }

    fn expire_at(&mut self, key: &RecordKey, expires_at: Instant) {
        let Some(stored) = self.entries.get_mut(key) else { return };
        if let Some(key) = self.expiries.remove(&(stored.expires_at, stored.number)) {
            stored.expires_at = expires_at;
            self.expiries.insert((expires_at, stored.number), key);
        }
    }
}

impl Stored {
    fn entry(&self, key: &RecordKey, now: Instant) -> Option<Entry> {
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

/// No code of ours panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
