//! The leases of a registry, ordered by the time at which they are due, and indexed by their keys.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use smallvec::SmallVec;

use crate::key::RecordKey;
use crate::lease::delivery::runtime_of;
use crate::lease::state::{Lease, Slot};
use crate::store::handle::StoreHandle;
use crate::sync::tokio::time::Instant;
use crate::sync::{KeyHasher, RuntimeId, lock};

/// The most leases that one call of a store renews.
const BATCH: usize = 256;

/// The most leases that are examined while the lock is held. The others are examined when a batch has ended.
const MOST_EXAMINED: usize = 16 * BATCH;

/// The most leases of one store that are renewed alone at the same time, beside its batches.
const ALONE: usize = 4;

/// When each lease of a registry is renewed, and which leases are renewed together.
#[derive(Default)]
pub(super) struct Schedule {
    of_stores: Vec<OfStore>,
    next_number: u64,
}

/// Leases that are sent to a store together.
pub(super) struct Batch {
    pub(super) leases: Vec<Arc<Lease>>,
    pub(super) is_alone: bool,
}

/// Leases that are renewed together have the same runtime, which may be blocked, and a similar length, because a batch
/// may take only as long as its shortest lease allows. So a short lease never waits for long ones.
type Group = (Option<RuntimeId>, u32);

fn group(lease: &Lease) -> Group {
    (runtime_of(lease), lease.length.as_millis().max(1).ilog2())
}

struct OfStore {
    store: StoreHandle,
    by_due: BTreeMap<Slot, Arc<Lease>>,
    /// Nearly always one for each key.
    by_key: HashMap<RecordKey, SmallVec<[Arc<Lease>; 1]>, KeyHasher>,
    /// The groups that have a batch in flight. Leases of such a group that become due wait for its end.
    batches: HashSet<Group>,
    /// The number of leases that are renewed outside of a batch.
    alone: usize,
}

impl Schedule {
    /// Returns the leases of a store. The search is linear, because there are few stores.
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

    /// Inserts a lease whose claim was sent at `asked_at`. Returns when the lease is due.
    ///
    /// The first renewal is due after a sixth to a third of the lease's length, and each later one after a third. So
    /// claims that were made together do not become due together.
    pub(super) fn insert(&mut self, lease: &Arc<Lease>, asked_at: Instant) -> Instant {
        let due = asked_at + lease.length / 6 + spread(lease.length / 6, self.next_number);
        self.of(&lease.store).by_key.entry(lease.key.clone()).or_default().push(Arc::clone(lease));
        self.slot(lease, Some(due));
        due
    }

    pub(super) fn remove(&mut self, lease: &Arc<Lease>) {
        self.slot(lease, None);
        let by_key = &mut self.of(&lease.store).by_key;
        if let Some(of_key) = by_key.get_mut(&lease.key) {
            of_key.retain(|other| !Arc::ptr_eq(other, lease));
            if of_key.is_empty() {
                by_key.remove(&lease.key);
            }
        }
    }

    /// Returns the newest lease with this key that has not ended.
    pub(super) fn running(&self, store: &StoreHandle, key: &RecordKey) -> Option<Arc<Lease>> {
        let leases = self.of_stores.iter().find(|leases| leases.store.is(store))?;
        leases.by_key.get(key)?.iter().rev().find(|lease| lease.is_running()).cloned()
    }

    /// Takes the batches that can be sent now. Their leases are already scheduled for their next renewal.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Batch> {
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

    /// Returns when the next lease can be sent. Leases that wait for the answer of their store are examined again when
    /// the answer has come.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.of_stores.iter().filter_map(OfStore::next_due).min()
    }

    /// Returns whether the lease can be sent: its store has no renewal in flight that the lease must wait for.
    pub(super) fn may_go(&mut self, lease: &Lease) -> bool {
        self.of(&lease.store).may_go(lease)
    }

    /// Notes that the renewal of the batch whose first lease is `first` has ended.
    pub(super) fn returned(&mut self, first: &Lease, is_alone: bool) {
        let of_store = self.of(&first.store);
        if is_alone {
            of_store.alone -= 1;
        } else {
            of_store.batches.remove(&group(first));
        }
    }

    /// Moves the lease to another time, if the lease is still kept. Returns whether it is kept.
    pub(super) fn place_again(&mut self, lease: &Arc<Lease>, due: Instant) -> bool {
        let is_kept = lock(&lease.slot).is_some();
        if is_kept {
            self.slot(lease, Some(due));
        }
        is_kept
    }

    /// Moves the lease to the time at which it is due, or removes it.
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
        for (_, lease) in self.by_due.range(..=(now, u64::MAX)).take(MOST_EXAMINED) {
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
        self.by_due.iter().take(MOST_EXAMINED).find(|(_, lease)| self.may_go(lease)).map(|(&(due, _), _)| due)
    }

    fn may_go(&self, lease: &Lease) -> bool {
        if lease.is_alone.load(Ordering::Relaxed) { self.alone < ALONE } else { !self.batches.contains(&group(lease)) }
    }
}

/// Returns a fraction of `whole` for each number. The fractions of consecutive numbers are far apart, because they are
/// multiples of the golden ratio.
fn spread(whole: Duration, number: u64) -> Duration {
    let part = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    // The division comes first, because the product of both would overflow.
    (whole / 4096) * u32::try_from(part >> 20).unwrap_or_default()
}
