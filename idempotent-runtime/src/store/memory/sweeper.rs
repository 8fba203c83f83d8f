//! Frees what has expired, without anyone asking and without a long pause.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::deadline::Deadline;
use crate::store::memory::duty::UNKNOWN;
use crate::store::memory::shard::Moment;
use crate::store::memory::store::Inner;
use crate::sync::atomic::Ordering;
use crate::sync::{lock, tokio};

/// The sweeper rests at least this long, or a busy store would wake it for every single expiry.
const PAUSE: Duration = Duration::from_millis(100);

/// After so many entries it rests for a moment: whoever waits for the lock of the allocator, which is taken for each of them,
/// would not get it before.
const IN_ONE_GO: usize = 512;
const MOMENT: Duration = Duration::from_millis(1);

impl Inner {
    /// Sees to it that the sweeper wakes by then.
    pub(super) fn sweep_at(self: &Arc<Self>, expires_at: Moment) {
        let wanted = nanos(expires_at);
        if self.sweeper.wakes_at.load(Ordering::SeqCst) <= wanted {
            return;
        }
        let mut has_task = lock(&self.sweeper.has_task);
        if self.sweeper.wakes_at.load(Ordering::SeqCst) <= wanted {
            return;
        }
        self.sweeper.wakes_at.store(wanted, Ordering::SeqCst);
        if *has_task {
            self.sweeper.earlier.notify_one();
        } else {
            *has_task = true;
            drop(has_task);
            // A runtime that shuts down drops the task here and now, and with it its duty, which takes the lock.
            tokio::spawn(sweep_forever(OnDuty(Arc::downgrade(self))));
        }
    }

    async fn sweep_all(&self) {
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

#[cfg(all(test, shuttle))]
impl crate::store::memory::store::MemoryStore {
    /// Leaves what expires to the calls of the store: with the sweeper's steps, the schedules are too many to try all.
    pub(crate) fn without_sweeper(self) -> Self {
        self.0.sweeper.wakes_at.store(0, Ordering::SeqCst);
        self
    }
}

/// The task dies with the runtime that it was spawned on, which need not be the last one of the process.
struct OnDuty(Weak<Inner>);

impl Drop for OnDuty {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.sweeper.leave(&mut lock(&inner.sweeper.has_task));
        }
    }
}

/// Ends when the last handle of the store is gone.
async fn sweep_forever(mut duty: OnDuty) {
    loop {
        let Some(inner) = duty.0.upgrade() else { return };
        inner.sweep_all().await;
        let wakes_at = {
            let mut has_task = lock(&inner.sweeper.has_task);
            // Who enters something from here on waits for the lock and corrects the time; what was entered before is seen.
            inner.sweeper.wakes_at.store(UNKNOWN, Ordering::SeqCst);
            let Some(next) = inner.next_expiry() else {
                inner.sweeper.leave(&mut has_task);
                duty.0 = Weak::new();
                return;
            };
            let wakes_at = next.max(inner.now() + PAUSE);
            inner.sweeper.wakes_at.store(nanos(wakes_at), Ordering::SeqCst);
            Deadline::since(inner.began, wakes_at)
        };
        let earlier = Arc::clone(&inner.sweeper.earlier);
        drop(inner);
        tokio::select! {
            () = wakes_at.reached() => {}
            () = earlier.notified() => {}
        }
    }
}

fn nanos(moment: Moment) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX - 1)
}
