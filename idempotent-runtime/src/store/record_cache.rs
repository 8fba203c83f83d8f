//! Caches the records that this process has made, so that their replays do not ask the store.
//!
//! A record never changes before its ttl expires, but it can be purged: after a purge by another process, the cache still has
//! it for up to `max_age`.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::deadline::Deadline;
use crate::key::RecordKey;
use crate::record::Record;
use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, lock};

/// What an entry is counted for beside its key and payload: its places in the cache, and its header lines.
const ENTRY_BYTES: usize = 512;

pub(crate) struct RecordCache {
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
    pub(crate) fn new(max_bytes: usize, max_age: Duration) -> Self {
        let entries = max_bytes / (2 * ENTRY_BYTES);
        Self {
            records: Cache::with_weighter(entries, max_bytes as u64, ByBytes),
            max_age,
            last_purge: Mutex::default(),
        }
    }

    pub(crate) fn get(&self, key: &RecordKey) -> Option<Record> {
        let kept = self.records.get(key)?;
        (!kept.until.is_over()).then(|| kept.record.clone())
    }

    /// Takes in what the store has kept since `asked_at` or later, and thus for longer than this does.
    pub(crate) fn keep(&self, key: &RecordKey, record: &Record, asked_at: Instant, ttl: Duration) {
        let until = Deadline::since(asked_at, ttl.min(self.max_age));
        let last_purge = lock(&self.last_purge);
        if last_purge.is_some_and(|purged_at| asked_at <= purged_at) {
            // It may be this one that was purged, between the store's write and its answer.
            return;
        }
        self.records.insert(key.clone(), Arc::new(Kept { record: record.clone(), until }));
    }

    /// The store has just purged it.
    pub(crate) fn forget(&self, key: &RecordKey) {
        *lock(&self.last_purge) = Some(Instant::now());
        self.records.remove(key);
    }
}
