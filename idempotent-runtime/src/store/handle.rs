//! A store of the registry, with one queue and one task that give back claims under which nothing runs.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::key::RecordKey;
use crate::store::claim::{Claim, ClaimRequest, Held};
use crate::store::entry::EntryState;
use crate::store::erased::ErasedStore;
use crate::store::error::StoreError;
use crate::store::timed::TimedStore;
use crate::store::unwanted_claims::{GiveBacks, Lapse, Unwanted};
use crate::sync::atomic::Ordering;
use crate::sync::tokio::time::Instant;
use crate::sync::{lock, tokio};

/// The largest number of claims in one queue, which take about 10 MB.
const MOST: usize = 10_000;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause between two tries. During a pause, a claim that arrived late rejects its key.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A store of the registry.
#[derive(Clone)]
pub(crate) struct StoreHandle(Arc<Inner>);

struct Inner {
    store: TimedStore,
    give_backs: GiveBacks,
}

impl Deref for StoreHandle {
    type Target = TimedStore;

    fn deref(&self) -> &TimedStore {
        &self.0.store
    }
}

impl StoreHandle {
    pub(crate) fn new(name: &str, store: Arc<dyn ErasedStore>, limit: Duration) -> Self {
        Self(Arc::new(Inner { store: TimedStore::new(name, store, limit), give_backs: GiveBacks::default() }))
    }

    /// Returns whether both are the same store of one registry.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns a number that no other store of this process has.
    pub(crate) fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    pub(crate) async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        self.ensure_give_backs();
        self.0.store.claim(key, request).await
    }

    /// Ends a claim that the store may have made and under which nothing runs.
    ///
    /// After a takeover, the claim lapses instead of being released: a release would reset the number of attempts. If a
    /// claim stayed under `AfterCrash::Reject`, its key would be rejected. If it stayed under `AfterCrash::Rerun`, its
    /// handler would seem to operators to have crashed.
    pub(crate) fn give_back(&self, key: &RecordKey, request: &ClaimRequest) {
        let is_released = !request.after_crash.may_rerun();
        self.enqueue(Unwanted {
            key: key.clone(),
            token: request.token,
            is_released,
            arrives_within: request.lease,
            arrives_until: Deadline::after(request.lease),
            // A claim that may be taken over expires by itself after its ttl. A claim under `AfterCrash::Reject` never
            // does.
            tried_until: Deadline::after(if is_released { Duration::MAX } else { request.ttl }),
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            renewed: None,
        });
    }

    /// Lets a claim lapse at once under which something may have run.
    pub(crate) fn let_lapse(&self, lease: impl Lapse, length: Duration) {
        lease.stop_renewals();
        self.enqueue(Unwanted {
            key: lease.key().clone(),
            token: lease.token(),
            is_released: false,
            arrives_within: Duration::ZERO,
            arrives_until: Deadline::after(Duration::ZERO),
            tried_until: Deadline::after(length),
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            renewed: Some(Arc::new(lease)),
        });
    }

    fn enqueue(&self, unwanted: Unwanted) {
        let give_backs = &self.0.give_backs;
        let mut queue = lock(&give_backs.queue);
        if queue.by_due.len() >= MOST {
            if !std::mem::replace(&mut queue.has_overflowed, true) {
                tracing::error!(
                    store = self.name(),
                    "too many claims under which nothing ran wait to be given back: each further one stays until its lease \
                     expires, and under `after_crash = \"reject\"` until an operator resolves it"
                );
            }
            return;
        }
        queue.insert(Instant::now(), unwanted);
        give_backs.has_any.store(true, Ordering::Relaxed);
        self.ensure_task();
        drop(queue);
        give_backs.changed.notify_one();
    }

    /// Starts the task again if the queue is not empty. Each claim calls this, because the runtime of the task may be
    /// gone.
    fn ensure_give_backs(&self) {
        let give_backs = &self.0.give_backs;
        if give_backs.has_any.load(Ordering::Relaxed) && !lock(&give_backs.queue).by_due.is_empty() {
            self.ensure_task();
        }
    }

    /// Claims that a former task tried to give back stay in the queue, and are tried again.
    fn ensure_task(&self) {
        self.0.give_backs.task.ensure(|| give_all_back(self.clone()));
    }

    /// Returns the number of claims that wait to be given back.
    pub(crate) fn given_back(&self) -> usize {
        lock(&self.0.give_backs.queue).by_due.len()
    }

    /// Waits until the queue is empty. Tries all waiting claims at once.
    pub(crate) async fn until_given_back(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(20));
        {
            let mut queue = lock(&self.0.give_backs.queue);
            if queue.by_due.is_empty() {
                return;
            }
            // Claims that are due keep their place, by which their task removes them.
            let now = Instant::now();
            for (_, unwanted) in queue.by_due.split_off(&(now, u64::MAX)) {
                queue.insert(now, unwanted);
            }
        }
        self.ensure_task();
        self.0.give_backs.changed.notify_one();
        while self.given_back() > 0 {
            backoff.wait().await;
            self.ensure_give_backs();
        }
    }

    async fn try_to_end(&self, unwanted: &Unwanted) -> Result<Held, StoreError> {
        let (key, token) = (&unwanted.key, unwanted.token);
        if let Some(lease) = &unwanted.renewed {
            return lease.lapse().await;
        }
        if !unwanted.is_released {
            match self.get(key).await {
                Ok(Some(entry)) => match entry.state {
                    EntryState::Claimed { attempt: 1, token: holder, .. } if holder == token => {}
                    EntryState::Claimed { .. } => return self.renew(key, token, Duration::ZERO).await,
                    EntryState::Completed { .. } => return Ok(Held::No),
                },
                // An entry that cannot be read is not the claim that was made just now.
                Ok(None) | Err(StoreError::Damaged(_)) => return Ok(Held::No),
                Err(error) => return Err(error),
            }
        }
        self.release(key, token).await
    }
}

async fn give_all_back(store: StoreHandle) {
    loop {
        let (due, next) = {
            let mut queue = lock(&store.0.give_backs.queue);
            let Some((&(next, _), _)) = queue.by_due.first_key_value() else {
                // The lock is held, so a claim that is queued later finds no task and spawns one.
                store.0.give_backs.task.has_ended();
                store.0.give_backs.has_any.store(false, Ordering::Relaxed);
                queue.has_overflowed = false;
                return;
            };
            (queue.due(), next)
        };
        if due.is_empty() {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = store.0.give_backs.changed.notified() => {}
            }
            continue;
        }
        let tried = join_all(due.iter().map(|(_, unwanted)| store.try_to_end(unwanted))).await;
        let mut gone = Vec::new();
        {
            let mut queue = lock(&store.0.give_backs.queue);
            for ((place, mut unwanted), ended) in due.into_iter().zip(tried) {
                let Some(tried) = queue.by_due.remove(&place) else {
                    // The task that replaced this one has ended the claim, or tries it again.
                    continue;
                };
                gone.push(tried);
                if !unwanted.is_gone(&ended) {
                    let pause = unwanted.backoff.advance();
                    queue.insert(Instant::now() + pause, unwanted);
                }
            }
        }
        // These are dropped without the lock, because a lease takes a lock of its own.
        drop(gone);
    }
}
