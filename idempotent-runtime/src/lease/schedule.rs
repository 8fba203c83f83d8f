//! The leases of a registry, by the time at which they are due and by their keys.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::key::RecordKey;
use crate::lease::delivery::runtime_of;
use crate::lease::state::{Lease, Slot};
use crate::store::handle::StoreHandle;
use crate::sync::tokio::time::Instant;
use crate::sync::{KeyHasher, RuntimeId, lock};

/// How many leases one call of a store renews, at most.
const BATCH: usize = 256;

/// How many leases are looked at, at most, while the lock is held: those beyond them are seen when a batch has ended.
const LOOKED_AT: usize = 16 * BATCH;

/// How many leases of a store are renewed alone at once, beside its batch.
const ALONE: usize = 4;

/// When the leases of a registry are renewed, and which of them together.
#[derive(Default)]
pub(super) struct Schedule {
    of_stores: Vec<OfStore>,
    next_number: u64,
}

/// What goes to a store together.
pub(super) struct Batch {
    pub(super) leases: Vec<Arc<Lease>>,
    pub(super) is_alone: bool,
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

impl Schedule {
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

    /// Inserts a lease whose claim was asked for at `asked_at`. Returns when it is due.
    ///
    /// The first renewal is due between a sixth and a third of the lease's length, the next ones after a third each: claims
    /// that came at once do not come due at once.
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

    /// The last one that has claimed this key and has not ended.
    pub(super) fn running(&self, store: &StoreHandle, key: &RecordKey) -> Option<Arc<Lease>> {
        let leases = self.of_stores.iter().find(|leases| leases.store.is(store))?;
        leases.by_key.get(key)?.iter().rev().find(|lease| lease.is_running()).cloned()
    }

    /// What can go to the stores now, already inserted again for the next renewal.
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

    /// When something can go next. What waits for an answer of its store is looked for again when that has come.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.of_stores.iter().filter_map(OfStore::next_due).min()
    }

    /// Whether nothing of its store that must end first is on its way.
    pub(super) fn may_go(&mut self, lease: &Lease) -> bool {
        self.of(&lease.store).may_go(lease)
    }

    /// The store has answered a batch of which this is the first lease.
    pub(super) fn returned(&mut self, first: &Lease, is_alone: bool) {
        let of_store = self.of(&first.store);
        if is_alone {
            of_store.alone -= 1;
        } else {
            of_store.batches.remove(&group(first));
        }
    }

    /// Moves the lease, if it is still kept.
    pub(super) fn place_again(&mut self, lease: &Arc<Lease>, due: Instant) -> bool {
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

/// A part of `whole` for each number, so that numbers which follow each other lie apart: steps of the golden ratio.
fn spread(whole: Duration, number: u64) -> Duration {
    let part = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    // In two steps, since the product of both would not fit.
    (whole / 4096) * u32::try_from(part >> 20).unwrap_or_default()
}
