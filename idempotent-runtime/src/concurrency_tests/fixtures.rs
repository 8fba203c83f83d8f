//! The values that the concurrency tests send to a store, and a store that counts its calls.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use http::StatusCode;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::record::{Record, RecordedBody};
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::contract::{Store, StoreAdmin};
use crate::store::entry::{Cursor, Entry, Page};
use crate::store::error::StoreError;
use crate::store::memory::store::MemoryStore;
use crate::store::resolution::{Resolution, Resolved};
use crate::sync::tokio::sync::Notify;
use crate::sync::tokio::task::yield_now;
use crate::sync::unpoisoned;

pub(super) const LEASE: Duration = Duration::from_secs(30);
pub(super) const TTL: Duration = Duration::from_hours(1);

pub(super) fn record_key(name: &str) -> RecordKey {
    RecordKey::new("charges", None, name)
}

/// Returns a new request, which may follow one whose lease has expired.
pub(super) fn claim_request() -> ClaimRequest {
    ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([7; 32])).with_lease(LEASE).with_ttl(TTL)
}

pub(super) fn record(body: &str) -> Record {
    Record::new(
        StatusCode::CREATED,
        Vec::new(),
        RecordedBody::Whole(body.to_owned().into()),
        Fingerprint::from_bytes([7; 32]),
        UNIX_EPOCH,
    )
}

/// A store in memory that behaves as if it were remote: other tasks may run before and after each claim and renewal.
/// Its counters belong to the test and not to the tested code, so the checker need not switch tasks at them.
#[derive(Clone, Default)]
pub(super) struct CountingStore {
    pub(super) store: MemoryStore,
    calls: Arc<Calls>,
}

#[derive(Default)]
struct Calls {
    claims: AtomicUsize,
    acquired: AtomicUsize,
    ended_claims: AtomicUsize,
    renewed: Mutex<Vec<RecordKey>>,
    renewal: Notify,
}

impl CountingStore {
    /// Returns how many claims were requested.
    pub(super) fn claims(&self) -> usize {
        self.calls.claims.load(Ordering::Relaxed)
    }

    /// Returns how many claims were acquired.
    pub(super) fn acquired(&self) -> usize {
        self.calls.acquired.load(Ordering::Relaxed)
    }

    /// Returns how often a claim was completed or released by its holder.
    pub(super) fn ended_claims(&self) -> usize {
        self.calls.ended_claims.load(Ordering::Relaxed)
    }

    /// Resolves when the claim under `key` has been renewed this many times, and each of these calls has ended.
    pub(super) async fn until_renewed(&self, key: &RecordKey, times: usize) {
        while self.renewals(key) < times {
            self.calls.renewal.notified().await;
        }
    }

    fn renewals(&self, key: &RecordKey) -> usize {
        let renewed = unpoisoned(self.calls.renewed.lock());
        renewed.iter().filter(|renewed| *renewed == key).count()
    }
}

impl Store for CountingStore {
    async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        self.calls.claims.fetch_add(1, Ordering::Relaxed);
        yield_now().await;
        let claim = self.store.claim(key, request).await?;
        self.calls.acquired.fetch_add(usize::from(matches!(claim, Claim::Acquired { .. })), Ordering::Relaxed);
        yield_now().await;
        Ok(claim)
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        yield_now().await;
        let held = self.store.renew(key, token, lease).await?;
        yield_now().await;
        // This comes last: a test that advances the clock must not do so before this call has ended, because the call
        // has a time limit.
        unpoisoned(self.calls.renewed.lock()).push(key.clone());
        self.calls.renewal.notify_one();
        Ok(held)
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        let held = self.store.complete(key, token, record, ttl).await?;
        self.calls.ended_claims.fetch_add(usize::from(held == Held::Yes), Ordering::Relaxed);
        Ok(held)
    }

    async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        let held = self.store.release(key, token).await?;
        self.calls.ended_claims.fetch_add(usize::from(held == Held::Yes), Ordering::Relaxed);
        Ok(held)
    }
}

impl StoreAdmin for CountingStore {
    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.store.purge(key).await
    }

    async fn resolve(&self, key: &RecordKey, token: Token, resolution: Resolution) -> Result<Resolved, StoreError> {
        self.store.resolve(key, token, resolution).await
    }

    async fn delete_expired(&self) -> Result<usize, StoreError> {
        self.store.delete_expired().await
    }

    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.store.list(cursor, limit).await
    }
}
