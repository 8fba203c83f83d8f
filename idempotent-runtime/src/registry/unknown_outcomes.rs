//! Counts the unknown outcomes in the stores. An unknown outcome remains in its store after its process has ended.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use metrics::gauge;

use crate::background_task::BackgroundTask;
use crate::observe::metrics::meters::{METERS, asked_for};
use crate::observe::metrics::names::UNKNOWN_OUTCOMES;
use crate::policy::registration::written_policies;
use crate::store::entry::UnknownOutcomes;
use crate::store::handle::StoreHandle;
use crate::sync::{Mutex, MutexGuard, lock};

/// The delay of the first count, because a process has more urgent calls to its store when it starts.
const FIRST_COUNT: Duration = Duration::from_secs(5);
const EVERY: Duration = Duration::from_secs(15);
/// The least time between two counts, even if the numbers are requested more often.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// Counts for one registry until this value is dropped.
pub(crate) struct UnknownGauge {
    number: u64,
    stores: Arc<Vec<StoreHandle>>,
    task: BackgroundTask,
}

impl UnknownGauge {
    pub(crate) fn new(stores: Vec<StoreHandle>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let gauge = Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            stores: Arc::new(stores),
            task: BackgroundTask::default(),
        };
        gauge.start();
        gauge
    }

    /// Spawns the task unless it runs. Every request does this, because a registry may be built outside of a runtime.
    pub(crate) fn start(&self) {
        // The checker of `concurrency_tests` tries all orders of all existing tasks, but this task never ends.
        if !cfg!(all(test, shuttle)) {
            self.task.ensure(|| count_for_ever(self.number, Arc::downgrade(&self.stores)));
        }
    }
}

impl Drop for UnknownGauge {
    fn drop(&mut self) {
        // Before its counts are removed, because it adds some.
        self.task.abort();
        let mut table = table();
        if table.by_registry.remove(&self.number).is_some() {
            table.show();
        }
    }
}

async fn count_for_ever(number: u64, stores: Weak<Vec<StoreHandle>>) {
    let mut is_asked_for = asked_for();
    let mut known = Vec::new();
    let mut pause = FIRST_COUNT;
    loop {
        ::tokio::select! {
            () = ::tokio::time::sleep(pause) => {}
            _ = is_asked_for.changed() => {}
        }
        // A request for numbers that arrives during the count needs the next count.
        is_asked_for.mark_unchanged();
        let Some(stores) = stores.upgrade() else { return };
        if count(&stores, &mut known).await {
            let mut table = table();
            table.by_registry.insert(number, sum(&known));
            table.show();
        }
        drop(stores);
        ::tokio::time::sleep(AT_MOST_EVERY).await;
        pause = EVERY.saturating_sub(AT_MOST_EVERY);
    }
}

/// Counts in all stores. Returns whether there is a number for each store. A store that does not answer keeps its last
/// number.
async fn count(stores: &[StoreHandle], known: &mut Vec<Option<UnknownOutcomes>>) -> bool {
    known.resize(stores.len(), None);
    for (store, known) in stores.iter().zip(&mut *known) {
        // The store's meter has already counted the error.
        if let Ok(counted) = store.unknown_outcomes().await {
            *known = Some(counted);
        }
    }
    known.iter().all(Option::is_some)
}

fn sum(known: &[Option<UnknownOutcomes>]) -> UnknownOutcomes {
    let mut sum = UnknownOutcomes::new();
    for (scope, count) in known.iter().flatten().flatten() {
        *sum.entry(scope.clone()).or_default() += count;
    }
    sum
}

/// The counts of all registries of this process.
#[derive(Default)]
struct Table {
    by_registry: HashMap<u64, UnknownOutcomes>,
    /// The scopes that have had a number. When a scope has no unknown outcomes any more, its number must become 0.
    scopes: BTreeSet<String>,
}

impl Table {
    /// Shows the largest number of all registries for each scope, because two registries over one store count the same
    /// entries.
    #[expect(clippy::cast_precision_loss, reason = "no store has 2^52 unknown outcomes")]
    fn show(&mut self) {
        LazyLock::force(&METERS);
        self.scopes.extend(written_policies().map(|policy| policy.scope().to_owned()));
        self.scopes.extend(self.by_registry.values().flat_map(|counted| counted.keys().cloned()));
        for scope in &self.scopes {
            let counts = self.by_registry.values().filter_map(|counted| counted.get(scope));
            let most = counts.copied().max().unwrap_or_default();
            gauge!(UNKNOWN_OUTCOMES, "scope" => scope.clone()).set(most as f64);
        }
    }
}

fn table() -> MutexGuard<'static, Table> {
    static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);
    lock(&TABLE)
}
