//! When each lease is renewed: all leases of a registry, by the time at which they are due and by their keys.
//!
//! The time is kept by a thread of the library, so that no handler that blocks its thread, and no runtime that ends or is not
//! driven any more, holds a renewal up. A store gets few batches of renewals at a time, and what else is due waits, so that claims
//! and completions go first. A lease whose batch got no answer in time is renewed alone from then on, a few at a time: if one
//! key of a store hangs, the others are renewed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::lease::delivery::{Renewing, Runtimes, deliver, runtime_of};
use crate::lease::pending_claims::{PendingClaim, PendingClaims};
use crate::lease::state::{Lease, Running, Slot, Taken};
use crate::store::claim::{Held, Renewal, Token};
use crate::store::error::StoreError;
use crate::store::handle::StoreHandle;
use crate::store::unwanted_claims::Lapse;
use crate::sync::tokio::sync::Notify;
use crate::sync::tokio::task::JoinHandle;
use crate::sync::tokio::time::Instant;
use crate::sync::{KeyHasher, Mutex, RuntimeId, clock_is_paused, lock, on_own_thread, tokio};

/// How many leases one call of a store renews, at most.
const BATCH: usize = 256;

/// How many leases are looked at, at most, while the lock is held: those beyond them are seen when a batch has ended.
const LOOKED_AT: usize = 16 * BATCH;

/// How many leases of a store are renewed alone at once, beside its batch.
const ALONE: usize = 4;

/// Keeps the leases of one registry alive. Its thread ends with it.
#[derive(Default)]
pub(crate) struct LeaseRenewer(Arc<Shared>);

/// Keeps the lease alive until it is dropped.
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
    /// What is kept, for those who may outlive the claim.
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

/// What the thread has too.
#[derive(Default)]
pub(super) struct Shared {
    leases: Mutex<Leases>,
    earlier: Notify,
    pub(super) runtimes: Runtimes,
    pending_claims: PendingClaims,
}

#[derive(Default)]
struct Leases {
    of_stores: Vec<OfStore>,
    next_number: u64,
    wakes_at: Option<Instant>,
    has_thread: bool,
    is_closed: bool,
}

/// What goes to a store together.
struct Batch {
    leases: Vec<Arc<Lease>>,
    is_alone: bool,
}

/// Leases that are renewed together: of one runtime, which may be blocked, and about as long, since a batch may take as much
/// time as its shortest lease allows. So no lease waits for those that have more time.
type Group = (Option<RuntimeId>, u32);

fn group(lease: &Lease) -> Group {
    (runtime_of(lease), lease.length.as_millis().max(1).ilog2())
}

struct OfStore {
    store: StoreHandle,
    by_due: BTreeMap<Slot, Arc<Lease>>,
    by_key: HashMap<RecordKey, Vec<Arc<Lease>>, KeyHasher>,
    /// The batches that are on their way: what is due meanwhile and belongs to the same one waits for its end.
    batches: HashSet<Group>,
    /// How many are on their way alone.
    alone: usize,
}

impl LeaseRenewer {
    /// Renews `lease` from now on until the answer is dropped; its claim was asked for at `asked_at`.
    ///
    /// The first renewal is due between a sixth and a third of the lease's length, the next ones after a third each: claims
    /// that came at once do not come due at once.
    pub(crate) fn keep(self: &Arc<Self>, mut lease: Lease, asked_at: Instant) -> KeptLease {
        lock(&lease.holding).confirmed_at = asked_at;
        lease.pending_claims = Some(self.0.pending_claims.of(&lease.key).clone());
        self.0.runtimes.saw(lease.runtime.as_ref());
        let mut leases = lock(&self.0.leases);
        let due = asked_at + lease.length / 6 + spread(lease.length / 6, leases.next_number);
        let lease = Arc::new(lease);
        leases.enter(&lease, due);
        if !leases.has_thread {
            leases.has_thread = start(&self.0);
        }
        self.0.wake(&mut leases, &lease, due);
        drop(leases);
        // The thread does not see how the clock of a test goes on.
        let on_paused_clock = clock_is_paused(lease.runtime.as_ref())
            .then(|| tokio::spawn(renew_on_paused_clock(Arc::clone(&self.0), Arc::clone(&lease))));
        KeptLease { renewer: Arc::clone(self), lease, on_paused_clock }
    }

    pub(super) fn forget(&self, lease: &Arc<Lease>) {
        lock(&self.0.leases).remove(lease);
    }

    /// A request asks for a claim of `key`. To be held until its answer is judged: a handler that ends under the key waits for
    /// what it gets by [`hand_over`](Self::hand_over).
    pub(crate) fn asks(&self, key: &RecordKey) -> PendingClaim {
        self.0.pending_claims.enter(key)
    }

    /// Gives the claim that a request has got to the handler of an earlier request with the key, if that runs in this process.
    /// Its lease has run out, or the store has forgotten its claim, but it has not died.
    pub(crate) fn hand_over(
        &self,
        store: &StoreHandle,
        key: &RecordKey,
        taken: &Taken<'_>,
        is_same_request: impl Fn(Fingerprint) -> bool,
    ) -> Option<Running> {
        let mut leases = lock(&self.0.leases);
        let lease = leases.running(store, key)?;
        let running = Running::of(&lease, is_same_request);
        if !lease.take_back(taken, running == Running::SameRequest) {
            return None;
        }
        // The lease that it takes over may be shorter, and has begun some time ago.
        self.0.renew_at(&mut leases, &lease, Instant::now());
        Some(running)
    }

    /// The handler that has claimed this key and still runs in this process, if there is one.
    pub(crate) fn running(
        &self,
        store: &StoreHandle,
        key: &RecordKey,
        is_same_request: impl Fn(Fingerprint) -> bool,
    ) -> Option<Running> {
        let lease = lock(&self.0.leases).running(store, key)?;
        Some(Running::of(&lease, is_same_request))
    }
}

impl Drop for LeaseRenewer {
    fn drop(&mut self) {
        lock(&self.0.leases).is_closed = true;
        self.0.earlier.notify_one();
    }
}

/// A part of `whole` for each number, so that numbers which follow each other lie apart: steps of the golden ratio.
fn spread(whole: Duration, number: u64) -> Duration {
    let part = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    // In two steps, since the product of both would not fit.
    (whole / 4096) * u32::try_from(part >> 20).unwrap_or_default()
}

/// Whether the thread runs. If it cannot be started, the next lease tries again.
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
            for batch in leases.take_due(Instant::now()) {
                tokio::spawn(renew(Arc::clone(&shared), batch));
            }
            leases.wakes_at = leases.next_due();
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
    // Dropped with the task, also where a store panics.
    let _under_way = UnderWay { shared: Arc::clone(&shared), first, is_alone };
    deliver(&shared, batch).await;
}

/// What keeps the next batch of its group waiting.
struct UnderWay {
    shared: Arc<Shared>,
    first: Arc<Lease>,
    is_alone: bool,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut leases = lock(&self.shared.leases);
        let of_store = leases.of(&self.first.store);
        if self.is_alone {
            of_store.alone -= 1;
        } else {
            of_store.batches.remove(&group(&self.first));
        }
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
    /// Asks the store of these leases, which all have the same one, to start them anew.
    async fn renew_all(&self, batch: Vec<Arc<Lease>>) {
        // An end that is on its way has the lock to itself: there is nothing to renew.
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
        // A store that panics at one key must not end the leases of the others.
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
            Ok(Held::Yes) => {}
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
        if leases.place_again(lease, due) {
            self.wake(leases, lease, due);
        }
    }

    /// Wakes the thread where it would sleep for too long. A lease whose batch has to wait is looked for when the one that is on
    /// its way has ended.
    fn wake(&self, leases: &mut Leases, lease: &Lease, due: Instant) {
        if leases.wakes_at.is_none_or(|wakes_at| due < wakes_at) && leases.of(&lease.store).may_go(lease) {
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

impl Leases {
    /// The leases of a store; there are few stores.
    fn of(&mut self, store: &StoreHandle) -> &mut OfStore {
        let index = self.of_stores.iter().position(|leases| leases.store.is(store)).unwrap_or_else(|| {
            self.of_stores.push(OfStore {
                store: store.clone(),
                by_due: BTreeMap::new(),
                by_key: HashMap::default(),
                batches: HashSet::new(),
                alone: 0,
            });
            self.of_stores.len() - 1
        });
        &mut self.of_stores[index]
    }

    fn enter(&mut self, lease: &Arc<Lease>, due: Instant) {
        self.of(&lease.store).by_key.entry(lease.key.clone()).or_default().push(Arc::clone(lease));
        self.slot(lease, Some(due));
    }

    fn remove(&mut self, lease: &Arc<Lease>) {
        self.slot(lease, None);
        let by_key = &mut self.of(&lease.store).by_key;
        if let Some(of_key) = by_key.get_mut(&lease.key) {
            of_key.retain(|other| !Arc::ptr_eq(other, lease));
            if of_key.is_empty() {
                by_key.remove(&lease.key);
            }
        }
    }

    /// The last one that has claimed this key and has not ended.
    fn running(&self, store: &StoreHandle, key: &RecordKey) -> Option<Arc<Lease>> {
        let leases = self.of_stores.iter().find(|leases| leases.store.is(store))?;
        leases.by_key.get(key)?.iter().rev().find(|lease| lease.is_running()).cloned()
    }

    /// What can go to the stores now, already entered again for the next renewal.
    fn take_due(&mut self, now: Instant) -> Vec<Batch> {
        let mut batches = Vec::new();
        for index in 0..self.of_stores.len() {
            let due = self.of_stores[index].take_due(now);
            for lease in due.iter().flat_map(|batch| &batch.leases) {
                self.slot(lease, Some(now + lease.length / 3));
            }
            batches.extend(due);
        }
        batches
    }

    /// When something can go next. What waits for an answer of its store is looked for again when that has come.
    fn next_due(&self) -> Option<Instant> {
        self.of_stores.iter().filter_map(OfStore::next_due).min()
    }

    /// Moves the lease, if it is still kept.
    fn place_again(&mut self, lease: &Arc<Lease>, due: Instant) -> bool {
        let is_kept = lock(&lease.slot).is_some();
        if is_kept {
            self.slot(lease, Some(due));
        }
        is_kept
    }

    /// Moves the lease to where it is due at this time, or takes it out.
    fn slot(&mut self, lease: &Arc<Lease>, due: Option<Instant>) {
        self.next_number += 1;
        let number = self.next_number;
        let by_due = &mut self.of(&lease.store).by_due;
        let mut slot = lock(&lease.slot);
        if let Some(former) = slot.take() {
            by_due.remove(&former);
        }
        *slot = due.map(|at| {
            by_due.insert((at, number), Arc::clone(lease));
            (at, number)
        });
    }
}

impl OfStore {
    fn take_due(&mut self, now: Instant) -> Vec<Batch> {
        let mut alone = Vec::new();
        let mut together = HashMap::<Group, Vec<Arc<Lease>>>::new();
        for (_, lease) in self.by_due.range(..=(now, u64::MAX)).take(LOOKED_AT) {
            let group = group(lease);
            if lease.is_alone.load(Ordering::Relaxed) {
                if self.alone < ALONE {
                    self.alone += 1;
                    alone.push(Batch { leases: vec![Arc::clone(lease)], is_alone: true });
                }
            } else if !self.batches.contains(&group) {
                let batch = together.entry(group).or_default();
                if batch.len() < BATCH {
                    batch.push(Arc::clone(lease));
                }
            }
        }
        self.batches.extend(together.keys().copied());
        alone.extend(together.into_values().map(|leases| Batch { leases, is_alone: false }));
        alone
    }

    fn next_due(&self) -> Option<Instant> {
        self.by_due.iter().take(LOOKED_AT).find(|(_, lease)| self.may_go(lease)).map(|(&(due, _), _)| due)
    }

    fn may_go(&self, lease: &Lease) -> bool {
        if lease.is_alone.load(Ordering::Relaxed) { self.alone < ALONE } else { !self.batches.contains(&group(lease)) }
    }
}
