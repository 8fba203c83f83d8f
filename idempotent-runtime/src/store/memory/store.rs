//! The in-memory store.

use std::sync::Arc;
use std::time::Duration;

use crate::key::RecordKey;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::contract::{ImmediateStore, Store, StoreAdmin};
use crate::store::entry::{Cursor, Entry, Page, UNKNOWN_OUTCOMES_COUNTED, UnknownOutcomes};
use crate::store::error::StoreError;
use crate::store::memory::shard::{Claiming, Shard};
use crate::store::memory::shares::Counted;
use crate::store::memory::stored::{ENTRY_BYTES, Moment};
use crate::store::memory::table::{SHARDS, Table};
use crate::store::resolution::{Resolution, Resolved};
use crate::sync::atomic::Ordering;
use crate::sync::lock;

/// A store that keeps claims and records in this process, limited by bytes.
///
/// The store never evicts a live entry or an unknown outcome. When it is full, it rejects new claims. It always accepts
/// the record of a claim that it granted, so the responses of the requests in flight can exceed the limit, each by at
/// most the `max_body` of its handler. One caller takes at most a [share](MemoryStoreBuilder::max_bytes_per_caller) of
/// the bytes. A task of the store deletes expired entries in small batches.
///
/// The store takes the time from [`tokio::time`], so a test can pause and advance it. A clone is cheap and shares all
/// entries.
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
pub struct MemoryStore(Arc<Table>);

/// The options of a [`MemoryStore`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct MemoryStoreBuilder {
    max_bytes: usize,
    max_bytes_per_caller: Option<usize>,
}

impl MemoryStoreBuilder {
    /// Sets the bytes that all entries may take: keys, headers, bodies, and a fixed cost of 192 bytes an entry and up
    /// to 8 bytes a header line. The default is 256 MiB.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets the bytes that the entries of one caller may take, in all scopes together. The default is half of
    /// [`max_bytes`](Self::max_bytes).
    ///
    /// A caller that has used up its bytes gets 503 for new keys, until some of its entries have expired. Its records
    /// are still replayed, and other callers are served. As with `max_bytes`, the record of a claim that was granted is
    /// always accepted.
    ///
    /// If no caller is named, the credentials of the request count as the caller: see [`Owner`](crate::store::Owner). A
    /// client that can vary its credentials, for example by another cookie, has as many shares. All requests with
    /// neither a caller nor credentials count as one caller.
    ///
    /// ```
    /// use idempotent_runtime::store::MemoryStore;
    ///
    /// let store = MemoryStore::builder().max_bytes(64 << 20).max_bytes_per_caller(1 << 20).build();
    /// # drop(store);
    /// ```
    pub fn max_bytes_per_caller(mut self, bytes: usize) -> Self {
        self.max_bytes_per_caller = Some(bytes);
        self
    }

    /// Builds the store.
    pub fn build(self) -> MemoryStore {
        let per_caller = self.max_bytes_per_caller.unwrap_or(self.max_bytes / 2);
        MemoryStore(Arc::new(Table::new(self.max_bytes, per_caller)))
    }
}

impl Default for MemoryStoreBuilder {
    fn default() -> Self {
        Self { max_bytes: 256 * 1024 * 1024, max_bytes_per_caller: None }
    }
}

impl MemoryStore {
    /// Creates a store of at most 256 MiB.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Returns a builder with the default options.
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder::default()
    }

    /// Returns the bytes that keys, headers, bodies and the fixed cost of the entries take now.
    pub fn used_bytes(&self) -> usize {
        self.0.used_bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of claims and records, including expired ones that are not deleted yet.
    pub fn len(&self) -> usize {
        self.0.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Returns whether the store has no entry.
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

impl ImmediateStore for MemoryStore {
    fn claim_now(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        let now = self.0.now();
        match self.try_to_claim(key, &request, now) {
            Err(StoreError::Full) if self.0.expired_deletion.full.may_scan(now) => {
                let claim = self.0.make_room(now, || self.try_to_claim(key, &request, now));
                if claim.is_ok() {
                    self.0.expired_deletion.full.found();
                }
                claim
            }
            // Expired entries of a caller keep its share until they are deleted, and the task may be late.
            Err(StoreError::OverQuota)
                if self.0.expired_deletion.may_be_overdue(now) && self.0.expired_deletion.over_quota.may_scan(now) =>
            {
                self.0.delete_expired_at(now, now);
                let claim = self.0.make_room(now, || self.try_to_claim(key, &request, now));
                if claim.is_ok() {
                    self.0.expired_deletion.over_quota.found();
                }
                claim
            }
            claim => claim,
        }
    }

    fn complete_now(&self, key: &RecordKey, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        let now = self.0.now();
        let expires_at = now.saturating_add(ttl);
        let (shard, tag) = self.0.shard_of(key);
        let held = {
            let mut shard = lock(shard);
            let (held, more) = shard.complete(tag, key, token, record, expires_at, now);
            self.0.add(more);
            held
        };
        self.0.delete_expired_at(expires_at, now);
        Ok(held)
    }
}

impl Store for MemoryStore {
    async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        self.claim_now(key, request)
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let (shard, tag) = self.0.shard_of(key);
        Ok(lock(shard).renew(tag, key, token, lease, self.0.now()))
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        self.complete_now(key, token, &record, ttl)
    }

    async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        let (shard, tag) = self.0.shard_of(key);
        let mut shard = lock(shard);
        let Some(less) = shard.release(tag, key, token, self.0.now()) else {
            // The token is remembered under the lock under which a claim checks it. No claim of a completed token is on
            // its way.
            if !shard.is_completed_by(tag, key, token, self.0.now()) {
                self.0.given_back.remember(token);
            }
            return Ok(Held::No);
        };
        self.0.sub(less);
        Ok(Held::Yes)
    }

    async fn extend(&self, key: &RecordKey, ttl: Duration) -> Result<Held, StoreError> {
        let (now, (shard, tag)) = (self.0.now(), self.0.shard_of(key));
        let expires_at = now.saturating_add(ttl);
        let held = lock(shard).extend(tag, key, expires_at, now);
        if held == Held::Yes {
            self.0.delete_expired_at(expires_at, now);
        }
        Ok(held)
    }

    fn immediate(&self) -> Option<&dyn ImmediateStore> {
        Some(self)
    }
}

impl StoreAdmin for MemoryStore {
    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        let (shard, tag) = self.0.shard_of(key);
        Ok(lock(shard).entry(tag, key, self.0.now()))
    }

    async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        let now = self.0.now();
        let (shard, tag) = self.0.shard_of(key);
        Ok(self.0.remove(&mut lock(shard), tag, key).is_some_and(|expires_at| expires_at > now))
    }

    async fn resolve(&self, key: &RecordKey, token: Token, resolution: Resolution) -> Result<Resolved, StoreError> {
        let (shard, tag) = self.0.shard_of(key);
        let now = {
            let mut shard = lock(shard);
            // The time is read under the lock, so that an earlier renewal counts.
            let now = self.0.now();
            let (resolved, more, less) = shard.resolve(tag, key, token, &resolution, now);
            if more.bytes == 0 && less.bytes == 0 {
                return Ok(resolved);
            }
            self.0.add(more);
            self.0.sub(less);
            now
        };
        if let Resolution::Executed { ttl, .. } = resolution {
            self.0.delete_expired_at(now.saturating_add(ttl), now);
        }
        Ok(Resolved::Yes)
    }

    async fn delete_expired(&self) -> Result<usize, StoreError> {
        let now = self.0.now();
        Ok(self
            .0
            .shards
            .iter()
            .map(|shard| self.0.free_expired(&mut lock(shard), now))
            .find(|&freed| freed > 0)
            .unwrap_or(0))
    }

    async fn unknown_outcomes(&self) -> Result<UnknownOutcomes, StoreError> {
        let (mut unknown, now) = (UnknownOutcomes::new(), self.0.now());
        let mut counted = 0;
        for shard in &self.0.shards {
            for entry in lock(shard).claims(now).iter().filter(|entry| entry.is_unknown_outcome()) {
                *unknown.entry(entry.key.scope().into_owned()).or_default() += 1;
                counted += 1;
            }
            if counted >= UNKNOWN_OUTCOMES_COUNTED {
                break;
            }
        }
        Ok(unknown)
    }

    /// Lists shard by shard, and within a shard in the order of the keys.
    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.page(cursor.as_ref(), limit, Shard::entries)
    }

    /// Lists in the order of [`list`](Self::list), without reading any record.
    async fn claims(&self, cursor: Option<Cursor>, limit: usize) -> Result<Option<Page>, StoreError> {
        self.page(cursor.as_ref(), limit, Shard::claims).map(Some)
    }
}

fn position(cursor: &Cursor) -> Option<(usize, &str)> {
    let (shard, key) = cursor.0.split_once(':')?;
    Some((shard.parse().ok().filter(|&shard| shard < SHARDS)?, key))
}

impl MemoryStore {
    fn page(
        &self,
        cursor: Option<&Cursor>,
        limit: usize,
        entries_of: fn(&Shard, Moment) -> Vec<Entry>,
    ) -> Result<Page, StoreError> {
        let now = self.0.now();
        let (first_shard, mut first_key) = match cursor {
            None => (0, ""),
            Some(cursor) => {
                position(cursor).ok_or_else(|| StoreError::unavailable("the cursor is not of this store"))?
            }
        };
        let mut entries = Vec::new();
        for (index, shard) in self.0.shards.iter().enumerate().skip(first_shard) {
            let mut living = entries_of(&lock(shard), now);
            living.retain(|entry| entry.key.as_str() >= first_key);
            living.sort_by(|a, b| a.key.cmp(&b.key));
            for entry in living {
                if entries.len() == limit {
                    let next = Some(Cursor(format!("{index}:{}", entry.key.as_str())));
                    return Ok(Page { entries, next, ..Page::default() });
                }
                entries.push(entry);
            }
            first_key = "";
        }
        Ok(Page { entries, ..Page::default() })
    }

    fn try_to_claim(&self, key: &RecordKey, request: &ClaimRequest, now: Moment) -> Result<Claim, StoreError> {
        let (shard, tag) = self.0.shard_of(key);
        let mut shard = lock(shard);
        self.0.free_expired(&mut shard, now);
        let attempt = match shard.claim(tag, key, request, now) {
            Claiming::Answer(claim) => return Ok(claim),
            Claiming::TakenOver { attempt } => attempt,
            Claiming::Absent => {
                // Under `AfterCrash::Reject`, a claim gets a key only in this case.
                self.0.given_back.check(request.token)?;
                // The entry may have expired without being deleted, because one batch is limited.
                self.0.remove(&mut shard, tag, key);
                let new = Counted { share: self.0.share(request.owner), bytes: ENTRY_BYTES + key.as_str().len() };
                self.0.reserve(new)?;
                shard.insert(tag, key, request, new.share, now);
                1
            }
        };
        drop(shard);
        if request.after_crash.may_rerun() {
            self.0.delete_expired_at(now.saturating_add(request.ttl), now);
        }
        Ok(Claim::Acquired { attempt })
    }
}

#[cfg(all(test, shuttle))]
impl MemoryStore {
    /// Leaves the deletion of expired entries to the calls of the store. With the steps of the task, there would be too
    /// many schedules to try all.
    pub(crate) fn without_expired_deletion(self) -> Self {
        self.0.expired_deletion.wakes_at.store(0, Ordering::SeqCst);
        self.0.expired_deletion.task.pretend_alive();
        self
    }
}
