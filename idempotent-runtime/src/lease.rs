//! Renews the leases of running handlers: one task for all of them, so that a handler that blocks its thread keeps its
//! claim and a request costs no timer of its own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::RecordKey;
use crate::metering;
use crate::store::{BoundedStore, Held, StoreError, Token};
use crate::sync::tokio::sync::Notify;
use crate::sync::tokio::task::JoinHandle;
use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, MutexGuard, tokio};

/// A claim that this process holds.
pub(crate) struct Lease {
    pub(crate) store: BoundedStore,
    pub(crate) key: RecordKey,
    pub(crate) token: Token,
    pub(crate) scope: &'static str,
    length: Duration,
    /// Its place among those that wait, which is changed under the lock of the keeper alone.
    place: Mutex<Place>,
    is_counted_as_lost: AtomicBool,
    /// Held over a renewal; false once it is pointless, because the claim is lost, or unwanted.
    is_renewed: tokio::sync::Mutex<bool>,
}

impl Lease {
    pub(crate) fn new(
        store: BoundedStore,
        key: RecordKey,
        token: Token,
        scope: &'static str,
        length: Duration,
    ) -> Self {
        let is_renewed = tokio::sync::Mutex::new(true);
        let is_counted_as_lost = AtomicBool::new(false);
        Self { store, key, token, scope, length, place: Mutex::default(), is_counted_as_lost, is_renewed }
    }

    /// A renewal may see it, and the end of the handler once more.
    pub(crate) fn count_as_lost(&self) {
        if !self.is_counted_as_lost.swap(true, Ordering::Relaxed) {
            metering::lease_lost(self.scope);
        }
    }
}

/// When a lease is due; `None` when nobody renews it. The number tells those apart that are due at the same moment.
type Place = Option<(Instant, u64)>;

/// Keeps the lease alive until it is dropped.
pub(crate) struct KeptLease {
    keeper: Arc<Keeper>,
    lease: Arc<Lease>,
}

impl std::ops::Deref for KeptLease {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        &self.lease
    }
}

impl Lease {
    /// Starts the lease anew; [`Held::No`] when the claim is lost or has ended.
    pub(crate) async fn confirm(&self) -> Result<Held, StoreError> {
        // Not behind the back of whoever ends the renewals: it would bring the lease back to life.
        let is_renewed = self.is_renewed.lock().await;
        if *is_renewed { self.store.renew(&self.key, self.token, self.length).await } else { Ok(Held::No) }
    }
}

impl KeptLease {
    /// What is kept, for those who may outlive the claim.
    pub(crate) fn share(&self) -> Arc<Lease> {
        Arc::clone(&self.lease)
    }

    /// Ends the renewals, the one that is on its way included.
    pub(crate) async fn stop_renewing(&self) {
        *self.lease.is_renewed.lock().await = false;
    }
}

impl Drop for KeptLease {
    fn drop(&mut self) {
        lock(&self.keeper.leases).place(&self.lease, None);
    }
}

#[derive(Default)]
pub(crate) struct Keeper {
    leases: Mutex<Leases>,
    earlier: Notify,
}

#[derive(Default)]
struct Leases {
    by_due: BTreeMap<(Instant, u64), Arc<Lease>>,
    next_number: u64,
    task: Option<JoinHandle<()>>,
    wakes_at: Option<Instant>,
}

impl Keeper {
    /// Renews `lease` at every third of its length from `now` on; also whether the task had to be woken for it.
    pub(crate) fn keep(self: &Arc<Self>, lease: Lease, now: Instant) -> (KeptLease, bool) {
        let due = now + lease.length / 3;
        let lease = Arc::new(lease);
        let mut leases = lock(&self.leases);
        leases.place(&lease, Some(due));
        // The task dies with the runtime that it was spawned on, which need not be the last one of the process.
        let has_woken = if leases.task.as_ref().is_none_or(JoinHandle::is_finished) {
            leases.wakes_at = Some(due);
            leases.task = Some(tokio::spawn(Arc::clone(self).run()));
            true
        } else if leases.wakes_at.is_none_or(|wakes_at| due < wakes_at) {
            leases.wakes_at = Some(due);
            self.earlier.notify_one();
            true
        } else {
            false
        };
        drop(leases);
        (KeptLease { keeper: Arc::clone(self), lease }, has_woken)
    }

    /// To be awaited after the task was woken.
    ///
    /// It waits on this very thread, where no other one can take it, until we yield: a handler that blocks right away would
    /// hold up the renewal of its own lease.
    pub(crate) async fn let_it_run() {
        tokio::task::yield_now().await;
    }

    async fn run(self: Arc<Self>) {
        loop {
            let wakes_at = {
                let mut leases = lock(&self.leases);
                for lease in leases.take_due(Instant::now()) {
                    // A task each: one store that hangs must not let the leases of another run out.
                    tokio::spawn(Arc::clone(&self).renew(lease));
                }
                leases.wakes_at = leases.by_due.first_key_value().map(|(&(due, _), _)| due);
                let Some(wakes_at) = leases.wakes_at else {
                    // The lock is held: whoever keeps the next lease sees this and spawns a new task.
                    leases.task = None;
                    return;
                };
                wakes_at
            };
            tokio::select! {
                () = tokio::time::sleep_until(wakes_at) => {}
                () = self.earlier.notified() => {}
            }
        }
    }

    async fn renew(self: Arc<Self>, lease: Arc<Lease>) {
        let mut is_renewed = lease.is_renewed.lock().await;
        if !*is_renewed {
            return;
        }
        let renewed = lease.store.renew(&lease.key, lease.token, lease.length).await;
        let mut leases = lock(&self.leases);
        if lock(&lease.place).is_none() {
            // The handler has ended meanwhile, and its claim with it.
            return;
        }
        match renewed {
            Ok(Held::Yes) => {}
            Ok(Held::No) => {
                *is_renewed = false;
                lease.count_as_lost();
                tracing::error!(
                    scope = lease.scope,
                    store = lease.store.name(),
                    "a running handler has lost its claim: another request with its key may run"
                );
            }
            Err(error) => {
                tracing::warn!(
                    scope = lease.scope,
                    store = lease.store.name(),
                    error = &error as &dyn std::error::Error,
                    "a lease could not be renewed; trying again"
                );
                let retry = Instant::now() + lease.length / 10;
                leases.place(&lease, Some(retry));
                if leases.wakes_at.is_none_or(|wakes_at| retry < wakes_at) {
                    leases.wakes_at = Some(retry);
                    self.earlier.notify_one();
                }
            }
        }
    }
}

impl Leases {
    /// What is due now, already entered again for its next renewal.
    fn take_due(&mut self, now: Instant) -> Vec<Arc<Lease>> {
        let mut due = Vec::new();
        while let Some((&(at, _), lease)) = self.by_due.first_key_value()
            && at <= now
        {
            let lease = Arc::clone(lease);
            self.place(&lease, Some(now + lease.length / 3));
            due.push(lease);
        }
        due
    }

    /// Moves the lease to where it is due at this time, or takes it out.
    fn place(&mut self, lease: &Arc<Lease>, due: Option<Instant>) {
        let mut place = lock(&lease.place);
        if let Some(former) = place.take() {
            self.by_due.remove(&former);
        }
        *place = due.map(|at| {
            self.next_number += 1;
            self.by_due.insert((at, self.next_number), Arc::clone(lease));
            (at, self.next_number)
        });
    }
}

/// No code of ours panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
