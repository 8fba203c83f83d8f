//! The deletion of expired entries in the background, in small batches.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::deadline::Deadline;
use crate::store::memory::deletion_task::UNKNOWN;
use crate::store::memory::stored::Moment;
use crate::store::memory::table::Table;
use crate::sync::atomic::Ordering;
use crate::sync::tokio::sync::Notify;
use crate::sync::{lock, tokio};

/// The shortest sleep of the task. Without it, a busy store would wake the task for each expiry.
const PAUSE: Duration = Duration::from_millis(100);

/// The number of entries after which the task sleeps for [`MOMENT`]. Each deletion takes the lock of the allocator, for
/// which other threads wait.
const IN_ONE_GO: usize = 512;
const MOMENT: Duration = Duration::from_millis(1);

impl Table {
    /// Makes the task wake at `expires_at` at the latest. Spawns the task if needed. Outside of a runtime there is none:
    /// the next call in a runtime spawns it.
    pub(super) fn delete_expired_at(self: &Arc<Self>, expires_at: Moment, now: Moment) {
        let (wanted, deletion) = (nanos(expires_at), &self.expired_deletion);
        let wakes_in_time = || deletion.wakes_at.load(Ordering::SeqCst) <= wanted && !deletion.is_overdue(now);
        if wakes_in_time() {
            return;
        }
        let mut earlier = lock(&deletion.earlier);
        if wakes_in_time() {
            return;
        }
        if deletion.task.is_alive() {
            deletion.wakes_at.store(wanted, Ordering::SeqCst);
            earlier.notify_one();
            return;
        }
        deletion.task.ensure(|| {
            *earlier = Arc::default();
            delete_expired_forever(Arc::downgrade(self), Arc::clone(&earlier))
        });
        // The task looks at all entries before it sleeps. If its runtime ends before that, the task is overdue.
        if deletion.task.is_alive() {
            deletion.wakes_at.store(wanted.min(nanos(now)), Ordering::SeqCst);
            // The former task may have woken up just now, so that none was spawned.
            earlier.notify_one();
        }
    }

    async fn delete_all_expired(&self) {
        let mut in_one_go = 0;
        for shard in &self.shards {
            loop {
                let freed = self.free_expired(&mut lock(shard), self.now());
                if freed == 0 {
                    break;
                }
                in_one_go += freed;
                if in_one_go < IN_ONE_GO {
                    tokio::task::yield_now().await;
                } else {
                    in_one_go = 0;
                    tokio::time::sleep(MOMENT).await;
                }
            }
        }
    }

    fn next_expiry(&self) -> Option<Moment> {
        self.shards.iter().filter_map(|shard| lock(shard).next_expiry()).min()
    }
}

/// Deletes expired entries until the store has none that expires, or the last handle of the store is gone.
async fn delete_expired_forever(table: Weak<Table>, earlier: Arc<Notify>) {
    loop {
        let Some(table) = table.upgrade() else { return };
        table.delete_all_expired().await;
        let wakes_at = {
            let last = lock(&table.expired_deletion.earlier);
            if !Arc::ptr_eq(&last, &earlier) {
                return;
            }
            // An entry that is added later waits for the lock and corrects the time. An entry that was added earlier is
            // seen here.
            let already_set = table.expired_deletion.wakes_at.swap(UNKNOWN, Ordering::SeqCst);
            // A time that was set stays, even if its entry is gone: otherwise each claim that ends quickly would wake
            // the task.
            let now = table.now();
            let already_set =
                (already_set != UNKNOWN).then(|| Moment::from_nanos(already_set)).filter(|set| *set > now);
            let Some(next) = table.next_expiry().into_iter().chain(already_set).min() else {
                table.expired_deletion.task.has_ended();
                return;
            };
            let wakes_at = next.max(now + PAUSE);
            table.expired_deletion.wakes_at.store(nanos(wakes_at), Ordering::SeqCst);
            Deadline::since(table.began, wakes_at)
        };
        drop(table);
        tokio::select! {
            () = wakes_at.reached() => {}
            () = earlier.notified() => {}
        }
    }
}

fn nanos(moment: Moment) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX - 1)
}
