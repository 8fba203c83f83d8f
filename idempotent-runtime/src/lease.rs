//! Renews the leases of running handlers: one task for all of them, so that a handler that blocks its thread keeps its
//! claim and a request costs no timer of its own.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::RecordKey;
use crate::store::{BoundedStore, Held, Token};
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
        Self { store, key, token, scope, length, is_renewed: tokio::sync::Mutex::new(true) }
    }
}

/// Keeps the lease alive until it is dropped.
pub(crate) struct KeptLease {
    keeper: Arc<Keeper>,
    id: u64,
    lease: Arc<Lease>,
}

impl std::ops::Deref for KeptLease {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        &self.lease
    }
}

impl KeptLease {
    /// Ends the renewals, the one that is on its way included.
    pub(crate) async fn stop_renewing(&self) {
        *self.lease.is_renewed.lock().await = false;
    }
}

impl Drop for KeptLease {
    fn drop(&mut self) {
        let mut leases = lock(&self.keeper.leases);
        if let Some((due, _)) = leases.by_id.remove(&self.id) {
            leases.by_due.remove(&(due, self.id));
        }
    }
}

#[derive(Default)]
pub(crate) struct Keeper {
    leases: Mutex<Leases>,
    earlier: Notify,
}

#[derive(Default)]
struct Leases {
    by_id: HashMap<u64, (Instant, Arc<Lease>)>,
    by_due: BTreeSet<(Instant, u64)>,
    next_id: u64,
    task: Option<JoinHandle<()>>,
    wakes_at: Option<Instant>,
}

impl Keeper {
    /// Renews `lease` at every third of its length from now on.
    pub(crate) async fn keep(self: &Arc<Self>, lease: Lease) -> KeptLease {
        let (kept, has_woken) = self.enter(lease);
        if has_woken {
            // A task that was just woken waits on this very thread, where no other one can take it, until we yield: a
            // handler that blocks right away would hold up the renewal of its own lease.
            tokio::task::yield_now().await;
        }
        kept
    }

    /// The kept lease, and whether the keeper had to be woken for it.
    fn enter(self: &Arc<Self>, lease: Lease) -> (KeptLease, bool) {
        let due = Instant::now() + lease.length / 3;
        let lease = Arc::new(lease);
        let mut leases = lock(&self.leases);
        let id = leases.next_id;
        leases.next_id += 1;
        leases.by_id.insert(id, (due, Arc::clone(&lease)));
        leases.by_due.insert((due, id));
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
        (KeptLease { keeper: Arc::clone(self), id, lease }, has_woken)
    }

    async fn run(self: Arc<Self>) {
        loop {
            let wakes_at = {
                let mut leases = lock(&self.leases);
                for (id, lease) in leases.take_due(Instant::now()) {
                    // A task each: one store that hangs must not let the leases of another run out.
                    tokio::spawn(Arc::clone(&self).renew(id, lease));
                }
                leases.wakes_at = leases.by_due.first().map(|&(due, _)| due);
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

    async fn renew(self: Arc<Self>, id: u64, lease: Arc<Lease>) {
        let mut is_renewed = lease.is_renewed.lock().await;
        if !*is_renewed {
            return;
        }
        let renewed = lease.store.renew(&lease.key, lease.token, lease.length).await;
        let mut leases = lock(&self.leases);
        if !leases.by_id.contains_key(&id) {
            // The handler has ended meanwhile, and its claim with it.
            return;
        }
        match renewed {
            Ok(Held::Yes) => {}
            Ok(Held::No) => {
                *is_renewed = false;
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
                leases.reschedule(id, retry);
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
    fn take_due(&mut self, now: Instant) -> Vec<(u64, Arc<Lease>)> {
        let mut due = Vec::new();
        while let Some(&(at, id)) = self.by_due.first()
            && at <= now
        {
            let lease = Arc::clone(&self.by_id[&id].1);
            self.reschedule(id, now + lease.length / 3);
            due.push((id, lease));
        }
        due
    }

    fn reschedule(&mut self, id: u64, at: Instant) {
        if let Some((due, _)) = self.by_id.get_mut(&id) {
            self.by_due.remove(&(*due, id));
            self.by_due.insert((at, id));
            *due = at;
        }
    }
}

/// No code of ours panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
