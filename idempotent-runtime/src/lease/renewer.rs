//! Renews the leases of a registry when they are due.
//!
//! A thread of the library keeps the time. So renewals are not delayed by a handler that blocks its thread, or by a
//! runtime that ends or is no longer driven. Each store gets only a few batches of renewals at a time, so that claims
//! and completions go first; other leases that are due wait. If a batch gets no answer in time, each of its leases is
//! renewed alone from then on, a few at a time. So if one key of a store hangs, the others are still renewed.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::lease::delivery::{Renewing, Runtimes, deliver};
use crate::lease::pending_claims::{PendingClaim, PendingClaims};
use crate::lease::schedule::{Batch, Schedule};
use crate::lease::state::{Lease, NewClaim, RunningHandler};
use crate::store::claim::{Held, Renewal, Token};
use crate::store::error::StoreError;
use crate::store::handle::StoreHandle;
use crate::store::unwanted_claims::Lapse;
use crate::sync::tokio::sync::Notify;
use crate::sync::tokio::task::JoinHandle;
use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, clock_is_paused, lock, on_own_thread, tokio, unpoisoned};

/// Keeps the leases of one registry alive. Its thread ends when this value is dropped.
#[derive(Default)]
pub(crate) struct LeaseRenewer(Arc<Shared>);

/// Keeps one lease alive until this value is dropped.
pub(crate) struct KeptLease {
    pub(super) renewer: Arc<LeaseRenewer>,
    pub(super) lease: Arc<Lease>,
    pub(super) on_paused_clock: Option<JoinHandle<()>>,
}

impl std::ops::Deref for KeptLease {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        &self.lease
    }
}

impl KeptLease {
    /// Returns the lease for tasks that may live longer than the claim.
    pub(crate) fn share(&self) -> Arc<Lease> {
        Arc::clone(&self.lease)
    }
}

impl Drop for KeptLease {
    fn drop(&mut self) {
        self.stop_renewals();
    }
}

impl Lapse for KeptLease {
    fn key(&self) -> &RecordKey {
        &self.lease.key
    }

    fn token(&self) -> Token {
        self.lease.token()
    }

    fn stop_renewals(&self) {
        self.renewer.forget(&self.lease);
        if let Some(renewing) = &self.on_paused_clock {
            renewing.abort();
        }
    }

    fn lapse(&self) -> BoxFuture<'_, Result<Held, StoreError>> {
        Box::pin(self.lease.lapse())
    }
}

/// The state that the renewer shares with its thread.
#[derive(Default)]
pub(super) struct Shared {
    leases: Mutex<Leases>,
    earlier: Notify,
    pub(super) runtimes: Runtimes,
    pending_claims: PendingClaims,
}

#[derive(Default)]
struct Leases {
    schedule: Schedule,
    wakes_at: Option<Instant>,
    has_thread: bool,
    is_closed: bool,
}

impl LeaseRenewer {
    /// Renews `lease` until the returned value is dropped.
    pub(crate) fn keep(self: &Arc<Self>, mut lease: Lease) -> KeptLease {
        let asked_at = unpoisoned(lease.state.get_mut()).confirmed_at;
        lease.pending_claims = Some(Arc::clone(self.0.pending_claims.of(&lease.key)));
        self.0.runtimes.saw(lease.runtime.as_ref());
        let lease = Arc::new(lease);
        let mut leases = lock(&self.0.leases);
        let due = leases.schedule.insert(&lease, asked_at);
        if !leases.has_thread {
            leases.has_thread = start(&self.0);
        }
        self.0.wake(&mut leases, &lease, due);
        drop(leases);
        // The thread does not see the paused clock of a test.
        let on_paused_clock = clock_is_paused(lease.runtime.as_ref())
            .then(|| tokio::spawn(renew_on_paused_clock(Arc::clone(&self.0), Arc::clone(&lease))));
        KeptLease { renewer: Arc::clone(self), lease, on_paused_clock }
    }

    pub(super) fn forget(&self, lease: &Arc<Lease>) {
        lock(&self.0.leases).schedule.remove(lease);
    }

    /// Registers a request that is about to claim `key`. Hold the result until the store's answer has been evaluated: a
    /// handler that ends under the key waits for a possible [`hand_over`](Self::hand_over).
    pub(crate) fn asks(&self, key: &RecordKey) -> PendingClaim {
        self.0.pending_claims.begin(key)
    }

    /// Hands a request's new claim over to the handler of an earlier request with the key, if that handler runs in this
    /// process. This happens if the handler's lease expired, or the store forgot its claim, although the handler still
    /// runs.
    pub(crate) fn hand_over(
        &self,
        store: &StoreHandle,
        key: &RecordKey,
        new_claim: &NewClaim<'_>,
        is_same_request: impl Fn(Fingerprint) -> bool,
    ) -> Option<RunningHandler> {
        let mut leases = lock(&self.0.leases);
        let lease = leases.schedule.running(store, key)?;
        let running = RunningHandler::of(&lease, is_same_request);
        if !lease.accept(new_claim, running == RunningHandler::SameRequest) {
            return None;
        }
        // The lease of the new claim may be shorter, and has already begun.
        self.0.renew_at(&mut leases, &lease, Instant::now());
        Some(running)
    }

    /// Returns the handler that has claimed this key and still runs in this process, if there is one.
    pub(crate) fn running(
        &self,
        store: &StoreHandle,
        key: &RecordKey,
        is_same_request: impl Fn(Fingerprint) -> bool,
    ) -> Option<RunningHandler> {
        let lease = lock(&self.0.leases).schedule.running(store, key)?;
        Some(RunningHandler::of(&lease, is_same_request))
    }
}

impl Drop for LeaseRenewer {
    fn drop(&mut self) {
        lock(&self.0.leases).is_closed = true;
        self.0.earlier.notify_one();
    }
}

/// Starts the thread. Returns whether the thread runs. If the thread cannot be started, the next lease tries again.
fn start(shared: &Arc<Shared>) -> bool {
    match on_own_thread("idempotent-leases", run(Arc::clone(shared))) {
        Ok(_) => true,
        Err(error) => {
            tracing::error!(%error, "the thread that renews leases cannot be started: running handlers lose their claims");
            false
        }
    }
}

async fn run(shared: Arc<Shared>) {
    loop {
        let wakes_at = {
            let mut leases = lock(&shared.leases);
            if leases.is_closed {
                return;
            }
            let now = Instant::now();
            for batch in leases.schedule.take_due(now) {
                tokio::spawn(renew(Arc::clone(&shared), batch));
            }
            // A wake-up time that was set stays, even if its lease is gone: otherwise each handler that ends quickly
            // would wake the thread.
            let already_set = leases.wakes_at.filter(|wakes_at| *wakes_at > now);
            leases.wakes_at = leases.schedule.next_due().into_iter().chain(already_set).min();
            leases.wakes_at
        };
        match wakes_at {
            Some(wakes_at) => tokio::select! {
                () = tokio::time::sleep_until(wakes_at) => {}
                () = shared.earlier.notified() => {}
            },
            None => shared.earlier.notified().await,
        }
    }
}

async fn renew_on_paused_clock(shared: Arc<Shared>, lease: Arc<Lease>) {
    loop {
        tokio::time::sleep(lease.length / 3).await;
        shared.renew_all(vec![Arc::clone(&lease)]).await;
    }
}

/// Renews leases of one store, and lets the next batch of that store follow.
async fn renew(shared: Arc<Shared>, Batch { leases: batch, is_alone }: Batch) {
    let Some(first) = batch.first().cloned() else { return };
    // This value is dropped with the task, even if a store panics.
    let _under_way = UnderWay { shared: Arc::clone(&shared), first, is_alone };
    deliver(&shared, batch).await;
}

/// While this value exists, the next batch of its group waits.
struct UnderWay {
    shared: Arc<Shared>,
    first: Arc<Lease>,
    is_alone: bool,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut leases = lock(&self.shared.leases);
        leases.schedule.returned(&self.first, self.is_alone);
        drop(leases);
        self.shared.earlier.notify_one();
    }
}

impl Renewing for Shared {
    fn runtimes(&self) -> &Runtimes {
        &self.runtimes
    }

    fn renew(self: Arc<Self>, leases: Vec<Arc<Lease>>) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.renew_all(leases).await })
    }
}

impl Shared {
    /// Renews these leases, which are all of one store.
    async fn renew_all(&self, batch: Vec<Arc<Lease>>) {
        // If the end of a claim is in progress, it holds the lock exclusively. Such a claim needs no renewal.
        let held: Vec<_> =
            batch.iter().filter_map(|lease| lease.renewing.try_read().ok().map(|guard| (lease, guard))).collect();
        let (leases, renewals): (Vec<_>, Vec<_>) = held
            .iter()
            .filter_map(|(lease, _)| {
                let token = lease.token_to_renew()?;
                Some((*lease, Renewal { key: lease.key.clone(), token, lease: lease.length }))
            })
            .unzip();
        let Some(first) = leases.first() else { return };
        let (asked_at, shortest) = (Instant::now(), leases.iter().map(|lease| lease.length).min().unwrap_or_default());
        // If a store panics for one key, the leases of the other keys must not end.
        let asking = AssertUnwindSafe(first.store.renew_many(&renewals, shortest * 5 / 12)).catch_unwind();
        let panicked = |_| Err(StoreError::TimedOut(asked_at.elapsed()));
        match asking.await.unwrap_or_else(panicked) {
            Ok(answers) => {
                for lease in &leases {
                    lease.is_alone.store(false, Ordering::Relaxed);
                }
                for ((lease, renewal), answer) in leases.iter().zip(&renewals).zip(answers) {
                    let renewed = lease.renewed(renewal.token, asked_at, answer).await;
                    self.conclude(lease, renewal, renewed);
                }
            }
            Err(error) => {
                warn(first, leases.len(), &error);
                let mut kept = lock(&self.leases);
                for lease in leases {
                    lease.is_alone.store(matches!(error, StoreError::TimedOut(_)), Ordering::Relaxed);
                    self.renew_at(&mut kept, lease, Instant::now() + lease.length / 10);
                }
            }
        }
    }

    fn conclude(&self, lease: &Arc<Lease>, renewal: &Renewal, renewed: Result<Held, StoreError>) {
        match renewed {
            Ok(Held::Yes) => lease.renew_steps(),
            Ok(Held::No) if !lease.has_lost(renewal.token) => {}
            Ok(Held::No) => {
                lease.count_as_lost();
                tracing::error!(
                    scope = &*lease.scope,
                    store = lease.store.name(),
                    "a running handler has lost its claim: another request with its key may run"
                );
            }
            Err(error) => {
                warn(lease, 1, &error);
                self.renew_at(&mut lock(&self.leases), lease, Instant::now() + lease.length / 10);
            }
        }
    }

    fn renew_at(&self, leases: &mut Leases, lease: &Arc<Lease>, due: Instant) {
        if leases.schedule.place_again(lease, due) {
            self.wake(leases, lease, due);
        }
    }

    /// Wakes the thread if it would sleep for too long. If the lease must wait for a running batch, the end of that
    /// batch wakes the thread.
    fn wake(&self, leases: &mut Leases, lease: &Lease, due: Instant) {
        if leases.wakes_at.is_none_or(|wakes_at| due < wakes_at) && leases.schedule.may_go(lease) {
            leases.wakes_at = Some(due);
            self.earlier.notify_one();
        }
    }
}

fn warn(lease: &Lease, leases: usize, error: &StoreError) {
    tracing::warn!(
        scope = &*lease.scope,
        store = lease.store.name(),
        leases,
        error = error as &dyn std::error::Error,
        "leases could not be renewed: trying again"
    );
}
