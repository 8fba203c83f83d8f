//! A store wrapper for the engine. It has a step at which it can die, and can disable one guard.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idempotent_runtime::store::{
    AfterCrash, Claim, ClaimRequest, Entry, EntryState, Held, Store, StoreAdmin, StoreError, Token,
};
use idempotent_runtime::{Record, RecordKey};
use idempotent_tests::{Wrapped, Wrapper, lock};

use super::Guard;
use super::fault_injection::BlockedThread;
use super::runtimes::Runtimes;
use super::steps::{Step, Steps};
use crate::LEASE;

/// Long enough for the process to be killed meanwhile.
const LATE: Duration = Duration::from_millis(400);

pub(super) struct WeakenedStore<S> {
    store: Arc<S>,
    steps: Arc<Steps>,
    blocked_thread: Arc<BlockedThread>,
    runtimes: Runtimes,
    without: Option<Guard>,
    claimed: Mutex<HashMap<RecordKey, Token>>,
}

impl<S: StoreAdmin> WeakenedStore<S> {
    pub(super) fn new(
        store: S,
        blocked_thread: Arc<BlockedThread>,
        runtimes: Runtimes,
        without: Option<Guard>,
    ) -> Wrapped<Self> {
        let (store, steps, claimed) = (Arc::new(store), Arc::default(), Mutex::default());
        Wrapped(Self { store, steps, blocked_thread, runtimes, without, claimed })
    }

    pub(super) fn steps(&self) -> &Arc<Steps> {
        &self.steps
    }

    /// Forgets the claim when its ttl has expired, even if its handler still runs.
    fn forget_after(&self, ttl: Duration, key: RecordKey, token: Token) {
        let store = Arc::clone(&self.store);
        tokio::spawn(async move {
            tokio::time::sleep(ttl).await;
            let entry = store.get(&key).await;
            let is_claim = |entry: Entry| matches!(entry.state, EntryState::Claimed { token: of, .. } if of == token);
            if entry.ok().flatten().is_some_and(is_claim) {
                let _ = store.purge(&key).await;
            }
        });
    }

    async fn complete_without_token(
        &self,
        key: &RecordKey,
        token: Token,
        record: Record,
        ttl: Duration,
    ) -> Result<Held, StoreError> {
        self.store.purge(key).await?;
        let request = ClaimRequest::new(token, record.fingerprint)
            .with_lease(LEASE)
            .with_ttl(ttl)
            .with_after_crash(AfterCrash::Rerun);
        self.store.claim(key, request).await?;
        self.store.complete(key, token, record, ttl).await
    }
}

impl<S: StoreAdmin> Wrapper for WeakenedStore<S> {
    fn inner(&self) -> &impl StoreAdmin {
        &self.store
    }

    async fn claim(&self, key: &RecordKey, mut request: ClaimRequest) -> Result<Claim, StoreError> {
        if self.without == Some(Guard::RejectionAfterCrash) {
            request.after_crash = AfterCrash::Rerun;
        }
        let claim = self.store.claim(key, request).await?;
        if self.without == Some(Guard::Disconnect) && matches!(claim, Claim::Acquired { .. }) {
            lock(&self.claimed).insert(key.clone(), request.token);
        }
        if self.without == Some(Guard::ClaimOutlivesTtl) && matches!(claim, Claim::Acquired { .. }) {
            self.forget_after(request.ttl, key.clone(), request.token);
        }
        Ok(claim)
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        match self.without {
            Some(Guard::Renewal) => return Ok(Held::Yes),
            Some(Guard::BlockedRenewal) if self.blocked_thread.is_blocked() => return Ok(Held::Yes),
            Some(Guard::RuntimeRenewal) => {
                if let Some(first) = self.runtimes.first() {
                    let (store, key) = (Arc::clone(&self.store), key.clone());
                    let renewing = first.spawn(async move { store.renew(&key, token, lease).await });
                    return renewing.await.map_err(StoreError::unavailable)?;
                }
            }
            _ => {}
        }
        self.store.renew(key, token, lease).await
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        if self.without == Some(Guard::RecordFirst) {
            let (store, key) = (Arc::clone(&self.store), key.clone());
            tokio::spawn(async move {
                tokio::time::sleep(LATE).await;
                store.complete(&key, token, record, ttl).await
            });
            return Ok(Held::Yes);
        }
        let held = match self.store.complete(key, token, record.clone(), ttl).await? {
            Held::No if self.without == Some(Guard::Token) => {
                self.complete_without_token(key, token, record, ttl).await?
            }
            held => held,
        };
        self.steps.reach(&key.key(), Step::Recorded);
        Ok(held)
    }
}

/// Frees the key of a client that disconnects.
pub(super) struct Leaving<S: StoreAdmin> {
    store: Arc<Wrapped<WeakenedStore<S>>>,
    key: Option<String>,
}

impl<S: StoreAdmin> Leaving<S> {
    pub(super) fn new(store: Arc<Wrapped<WeakenedStore<S>>>, key: String) -> Self {
        Self { store, key: Some(key) }
    }

    pub(super) fn stayed(&mut self) {
        self.key = None;
    }
}

impl<S: StoreAdmin> Drop for Leaving<S> {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let store = Arc::clone(&self.store);
        let claimed = lock(&store.claimed);
        let claims: Vec<_> = claimed
            .iter()
            .filter(|(claimed, _)| claimed.key() == key)
            .map(|(key, token)| (key.clone(), *token))
            .collect();
        drop(claimed);
        tokio::spawn(async move {
            for (key, token) in claims {
                let _ = store.release(&key, token).await;
            }
        });
    }
}
