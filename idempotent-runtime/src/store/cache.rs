//! A store in front of another store: it keeps the records that this process makes in memory, so that their replays do not ask
//! the other store.
//!
//! A record never changes before its ttl expires, but it can be purged: after a purge by another process, the cache still has
//! it for up to `max_age`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::deadline::Deadline;
use crate::key::RecordKey;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::contract::ImmediateStore;
use crate::store::entry::Entry;
use crate::store::erased::ErasedStore;
use crate::store::error::StoreError;
use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, lock};
use crate::transaction::transactions::{CommittedRecords, Recording, Transactions};

pub(crate) struct CachedStore {
    store: Arc<dyn ErasedStore>,
    records: Arc<RecordCache>,
}

impl CachedStore {
    /// The store behind a cache, or the store itself if it answers at once.
    pub(crate) fn in_front_of(
        store: Arc<dyn ErasedStore>,
        max_bytes: usize,
        max_age: Duration,
    ) -> Arc<dyn ErasedStore> {
        if store.immediate().is_some() {
            return store;
        }
        Arc::new(Self { store, records: Arc::new(RecordCache::new(max_bytes, max_age)) })
    }
}

impl ErasedStore for CachedStore {
    fn at_hand(&self, key: &RecordKey) -> Option<Record> {
        self.records.get(key)
    }

    fn claim<'a>(&'a self, key: &'a RecordKey, request: ClaimRequest) -> BoxFuture<'a, Result<Claim, StoreError>> {
        self.store.claim(key, request)
    }

    fn renew<'a>(
        &'a self,
        key: &'a RecordKey,
        token: Token,
        lease: Duration,
    ) -> BoxFuture<'a, Result<Held, StoreError>> {
        self.store.renew(key, token, lease)
    }

    fn renew_many<'a>(&'a self, renewals: &'a [Renewal]) -> BoxFuture<'a, Vec<Result<Held, StoreError>>> {
        self.store.renew_many(renewals)
    }

    fn complete<'a>(
        &'a self,
        key: &'a RecordKey,
        token: Token,
        record: Record,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Held, StoreError>> {
        // Only another attempt asks for the result of a step.
        if key.step_of().is_some() {
            return self.store.complete(key, token, record, ttl);
        }
        Box::pin(async move {
            let asked_at = Instant::now();
            let held = self.store.complete(key, token, record.clone(), ttl).await;
            if let Ok(Held::Yes) = held {
                self.records.keep(key, record, asked_at, ttl);
            }
            held
        })
    }

    fn release<'a>(&'a self, key: &'a RecordKey, token: Token) -> BoxFuture<'a, Result<Held, StoreError>> {
        self.store.release(key, token)
    }

    fn changed<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, ()> {
        self.store.changed(key)
    }

    fn transactions(&self) -> Option<Transactions> {
        let records: Arc<dyn CommittedRecords> = self.records.clone();
        Some(Transactions { records: Some(records), ..self.store.transactions()? })
    }

    fn immediate(&self) -> Option<&dyn ImmediateStore> {
        None
    }

    #[cfg(feature = "metrics")]
    fn unknown_outcomes(&self) -> BoxFuture<'_, Result<crate::store::entry::UnknownOutcomes, StoreError>> {
        self.store.unknown_outcomes()
    }

    fn get<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move {
            let found = self.store.get(key).await;
            if let Ok(None) = found {
                // Another process has purged it.
                self.records.forget(key);
            }
            found
        })
    }

    #[cfg(feature = "inspector")]
    fn purge<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            // Even after an error, and after a limit that drops this future: only the store knows from now on.
            let _forgetting = Forgetting { records: &self.records, key };
            self.store.purge(key).await
        })
    }

    #[cfg(feature = "inspector")]
    fn list(
        &self,
        cursor: Option<crate::store::entry::Cursor>,
        limit: usize,
    ) -> BoxFuture<'_, Result<crate::store::entry::Page, StoreError>> {
        self.store.list(cursor, limit)
    }
}

/// What an entry is counted for beside its key and payload: its places in the cache, and its header lines.
const ENTRY_BYTES: usize = 512;

struct RecordCache {
    records: Cache<RecordKey, Arc<Kept>, ByBytes>,
    max_age: Duration,
    last_purge: Mutex<Option<Instant>>,
}

struct Kept {
    record: Record,
    until: Deadline,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<RecordKey, Arc<Kept>> for ByBytes {
    fn weight(&self, key: &RecordKey, kept: &Arc<Kept>) -> u64 {
        (ENTRY_BYTES + key.as_str().len() + kept.record.payload_bytes()) as u64
    }
}

impl RecordCache {
    fn new(max_bytes: usize, max_age: Duration) -> Self {
        let entries = max_bytes / (2 * ENTRY_BYTES);
        Self {
            records: Cache::with_weighter(entries, max_bytes as u64, ByBytes),
            max_age,
            last_purge: Mutex::default(),
        }
    }

    fn get(&self, key: &RecordKey) -> Option<Record> {
        let kept = self.records.get(key)?;
        (!kept.until.is_over()).then(|| kept.record.clone())
    }

    /// Takes in what the store was asked to keep at `asked_at`.
    ///
    /// An earlier call may have had its effect although its answer was lost, so the store may have kept the record since then.
    /// No call is older than the record itself.
    fn keep(&self, key: &RecordKey, record: Record, asked_at: Instant, ttl: Duration) {
        let Ok(age) = SystemTime::now().duration_since(record.recorded_at) else {
            // The clock was set back meanwhile: the age is unknown.
            return;
        };
        let until = Deadline::after(ttl.min(self.max_age).saturating_sub(age));
        let last_purge = lock(&self.last_purge);
        if last_purge.is_some_and(|purged_at| asked_at <= purged_at) {
            // It may be this one that was purged, between the store's write and its answer.
            return;
        }
        self.records.insert(key.clone(), Arc::new(Kept { record, until }));
    }

    /// The store has just purged it.
    fn forget(&self, key: &RecordKey) {
        *lock(&self.last_purge) = Some(Instant::now());
        self.records.remove(key);
    }
}

/// Forgets the key when it is dropped.
#[cfg(feature = "inspector")]
struct Forgetting<'a> {
    records: &'a RecordCache,
    key: &'a RecordKey,
}

#[cfg(feature = "inspector")]
impl Drop for Forgetting<'_> {
    fn drop(&mut self) {
        self.records.forget(self.key);
    }
}

impl CommittedRecords for RecordCache {
    fn at_hand(&self, key: &RecordKey) -> Option<Record> {
        self.get(key)
    }

    fn committed(&self, recording: &Recording, asked_at: Instant) {
        let Recording { key, request, record, .. } = recording;
        self.keep(key, record.clone(), asked_at, request.ttl);
    }
}
