//! A cache in front of a store. It keeps in memory the records that this process makes, so their replays do not ask the
//! store.
//!
//! A record never changes before its ttl expires, but it can be purged. After a purge by another process, the cache
//! still has the record for up to `max_age`.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use crate::deadline::Deadline;
use crate::key::RecordKey;
use crate::record::{Record, RecordedBody};
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::contract::ImmediateStore;
use crate::store::entry::Entry;
use crate::store::erased::{Answer, ErasedStore};
use crate::store::error::StoreError;
use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, lock};
use crate::transaction::transactions::{CommittedRecords, Recording, Transactions};

pub(crate) struct CachedStore {
    store: Arc<dyn ErasedStore>,
    records: Arc<RecordCache>,
}

impl CachedStore {
    /// Returns the store behind a cache, or the store itself if it answers at once.
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

/// Forwards each call explicitly. With provided methods, a new method of the contract could bypass the cache unnoticed.
impl ErasedStore for CachedStore {
    fn at_hand(&self, key: &RecordKey) -> Option<Record> {
        self.records.get(key)
    }

    fn claim<'a>(&'a self, key: &'a RecordKey, request: ClaimRequest) -> Answer<'a, Claim> {
        self.store.claim(key, request)
    }

    fn renew<'a>(&'a self, key: &'a RecordKey, token: Token, lease: Duration) -> Answer<'a, Held> {
        self.store.renew(key, token, lease)
    }

    fn renew_many<'a>(&'a self, renewals: &'a [Renewal]) -> BoxFuture<'a, Vec<Result<Held, StoreError>>> {
        self.store.renew_many(renewals)
    }

    fn complete<'a>(&'a self, key: &'a RecordKey, token: Token, record: Record, ttl: Duration) -> Answer<'a, Held> {
        // The results of steps are not cached, because only another attempt reads them.
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

    fn release<'a>(&'a self, key: &'a RecordKey, token: Token) -> Answer<'a, Held> {
        self.store.release(key, token)
    }

    /// Extends the record of a step, which the cache does not keep.
    fn extend<'a>(&'a self, key: &'a RecordKey, ttl: Duration) -> Answer<'a, Held> {
        self.store.extend(key, ttl)
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
    fn unknown_outcomes(&self) -> Answer<'_, crate::store::entry::UnknownOutcomes> {
        self.store.unknown_outcomes()
    }

    fn get<'a>(&'a self, key: &'a RecordKey) -> Answer<'a, Option<Entry>> {
        Box::pin(async move {
            let found = self.store.get(key).await;
            if let Ok(None) = found {
                // Another process may have purged the record.
                self.records.forget(key);
            }
            found
        })
    }

    #[cfg(feature = "inspector")]
    fn purge<'a>(&'a self, key: &'a RecordKey) -> Answer<'a, bool> {
        Box::pin(async move {
            // The key is forgotten even after an error, and when a time limit drops this future. From now on only the
            // store knows its state.
            let _forgetting = Forgetting { records: &self.records, key };
            self.store.purge(key).await
        })
    }

    #[cfg(feature = "operate")]
    fn resolve<'a>(
        &'a self,
        key: &'a RecordKey,
        token: Token,
        resolution: crate::store::resolution::Resolution,
    ) -> Answer<'a, crate::store::resolution::Resolved> {
        Box::pin(async move {
            // A record that the cache has for this key is older than the claim, so it is forgotten as in a purge.
            let _forgetting = Forgetting { records: &self.records, key };
            self.store.resolve(key, token, resolution).await
        })
    }

    #[cfg(feature = "inspector")]
    fn list(&self, cursor: Option<crate::store::entry::Cursor>, limit: usize) -> Answer<'_, crate::store::entry::Page> {
        self.store.list(cursor, limit)
    }

    #[cfg(feature = "inspector")]
    fn claims(
        &self,
        cursor: Option<crate::store::entry::Cursor>,
        limit: usize,
    ) -> Answer<'_, Option<crate::store::entry::Page>> {
        self.store.claims(cursor, limit)
    }
}

/// The bytes that an entry counts for beside its key and payload: its places in the cache, and a few header lines.
const ENTRY_BYTES: usize = 512;

/// The bytes that a header line takes beside its text.
const LINE_BYTES: usize = 96;

struct RecordCache {
    records: Cache<RecordKey, Arc<Kept>, ByBytes>,
    max_age: Duration,
    /// The time at which the store last had no entry for a key, for each of a few groups of keys. An absent key keeps
    /// only records of its own group out of the cache.
    last_absences: [Mutex<Option<Instant>>; 64],
    groups: RandomState,
    /// The time at which expired entries were last deleted.
    deleted_at: Mutex<Instant>,
}

struct Kept {
    record: Record,
    until: Deadline,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<RecordKey, Arc<Kept>> for ByBytes {
    fn weight(&self, key: &RecordKey, kept: &Arc<Kept>) -> u64 {
        let Record { headers, .. } = &kept.record;
        (ENTRY_BYTES + key.as_str().len() + headers.len() * LINE_BYTES + kept.record.payload_bytes()) as u64
    }
}

impl RecordCache {
    fn new(max_bytes: usize, max_age: Duration) -> Self {
        let mut options = OptionsBuilder::new();
        // One shard: each of several would have only a part of the limit, and would take no record that is larger than
        // its part.
        options.shards(1).estimated_items_capacity(max_bytes / (2 * ENTRY_BYTES)).weight_capacity(max_bytes as u64);
        let options = options.build().expect("both capacities are set");
        Self {
            records: Cache::with_options(options, ByBytes, DefaultHashBuilder::default(), DefaultLifecycle::default()),
            max_age,
            deleted_at: Mutex::new(Instant::now()),
            last_absences: std::array::from_fn(|_| Mutex::default()),
            groups: RandomState::new(),
        }
    }

    fn last_absence(&self, key: &RecordKey) -> &Mutex<Option<Instant>> {
        let groups = self.last_absences.len() as u64;
        let group = usize::try_from(self.groups.hash_one(key) % groups).expect("there are a few");
        &self.last_absences[group]
    }

    fn get(&self, key: &RecordKey) -> Option<Record> {
        let kept = self.records.get(key)?;
        if kept.until.is_over() {
            self.records.remove_if(key, |kept| kept.until.is_over());
            return None;
        }
        Some(kept.record.clone())
    }

    /// Caches a record that the store was asked to keep at `asked_at`.
    ///
    /// The ttl counts from the time of the record. An earlier call may have taken effect although its answer was lost,
    /// so the store may have kept the record since then. No call is older than the record.
    fn keep(&self, key: &RecordKey, record: Record, asked_at: Instant, ttl: Duration) {
        let Ok(age) = SystemTime::now().duration_since(record.recorded_at) else {
            // The clock was set back meanwhile, so the age is unknown.
            return;
        };
        self.delete_expired();
        let record = copied(record);
        let until = Deadline::after(ttl.min(self.max_age).saturating_sub(age));
        let last_absence = lock(self.last_absence(key));
        if last_absence.is_some_and(|absent_at| asked_at <= absent_at) {
            // The absent key may be this one: it was purged between the store's write and its answer.
            return;
        }
        self.records.insert(key.clone(), Arc::new(Kept { record, until }));
    }

    /// Deletes expired entries, at most once in half of `max_age`, so that it costs little.
    fn delete_expired(&self) {
        {
            let mut deleted_at = lock(&self.deleted_at);
            if deleted_at.elapsed() < (self.max_age / 2).max(Duration::from_millis(100)) {
                return;
            }
            *deleted_at = Instant::now();
        }
        self.records.retain(|_, kept| !kept.until.is_over());
    }

    /// Removes the record of a key that the store has just purged or does not have.
    fn forget(&self, key: &RecordKey) {
        *lock(self.last_absence(key)) = Some(Instant::now());
        self.records.remove(key);
    }
}

/// Copies the record to memory of its own. Its body and header values may be slices, which keep alive the whole buffers
/// that they are part of.
fn copied(record: Record) -> Record {
    let body = match record.body {
        RecordedBody::Whole(body) if record.alone.is_some_and(|alone| alone.is(&body)) => RecordedBody::Whole(body),
        RecordedBody::Whole(body) => RecordedBody::Whole(Bytes::copy_from_slice(&body)),
        RecordedBody::Sealed(body) => RecordedBody::Sealed(Bytes::copy_from_slice(&body)),
        RecordedBody::NotRecorded => RecordedBody::NotRecorded,
    };
    let own = |name: &HeaderName, value: &HeaderValue| {
        let own = HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
        let mut copy = HeaderValue::from_bytes(value.as_bytes()).ok()?;
        copy.set_sensitive(value.is_sensitive());
        Some((own, copy))
    };
    let headers = record.headers.iter().map(|(name, value)| own(name, value).unwrap_or((name.clone(), value.clone())));
    Record { headers: headers.collect(), body, ..record }
}

/// Forgets the key when it is dropped.
#[cfg(feature = "operate")]
struct Forgetting<'a> {
    records: &'a RecordCache,
    key: &'a RecordKey,
}

#[cfg(feature = "operate")]
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
