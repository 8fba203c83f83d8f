//! Frees what has expired, without anyone asking and without a long pause.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Inner;
use super::shard::Moment;
use crate::deadline::Deadline;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::tokio::sync::Notify;
use crate::sync::{Mutex, lock, tokio};

/// The sweeper rests at least this long, or a busy store would wake it for every single expiry.
const PAUSE: Duration = Duration::from_millis(100);

/// After so many entries it rests for a moment: whoever waits for the lock of the allocator, which is taken for each of them,
/// would not get it before.
const IN_ONE_GO: usize = 512;
const MOMENT: Duration = Duration::from_millis(1);

/// Nobody sweeps, or it is being found out when the next one will.
const UNKNOWN: u64 = u64::MAX;

pub(super) struct Sweeper {
    /// In nanoseconds since the store began. Written under the lock, and read without it: a claim need not take it.
    wakes_at: AtomicU64,
    is_on_duty: Mutex<bool>,
    /// Apart from the rest, so that the sweeper can sleep without holding the store.
    earlier: Arc<Notify>,
}

impl Default for Sweeper {
    fn default() -> Self {
        Self { wakes_at: AtomicU64::new(UNKNOWN), is_on_duty: Mutex::default(), earlier: Arc::default() }
    }
}

impl Sweeper {
    /// The task finds nothing left to sweep, and ends.
    pub(super) fn end(&self) {
        self.earlier.notify_one();
    }

    /// The next one who enters something sends for another task.
    fn leave(&self, is_on_duty: &mut bool) {
        *is_on_duty = false;
        self.wakes_at.store(UNKNOWN, Ordering::SeqCst);
    }
}

impl Inner {
    /// Sees to it that the sweeper wakes by then.
    pub(super) fn sweep_at(self: &Arc<Self>, expires_at: Moment) {
        let wanted = nanos(expires_at);
        if self.sweeper.wakes_at.load(Ordering::SeqCst) <= wanted {
            return;
        }
        let mut is_on_duty = lock(&self.sweeper.is_on_duty);
        if self.sweeper.wakes_at.load(Ordering::SeqCst) <= wanted {
            return;
        }
        self.sweeper.wakes_at.store(wanted, Ordering::SeqCst);
        if *is_on_duty {
            self.sweeper.earlier.notify_one();
        } else {
            *is_on_duty = true;
            drop(is_on_duty);
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
impl super::MemoryStore {
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
            inner.sweeper.leave(&mut lock(&inner.sweeper.is_on_duty));
        }
    }
}

/// Ends when the last handle of the store is gone.
async fn sweep_forever(mut duty: OnDuty) {
    loop {
        let Some(inner) = duty.0.upgrade() else { return };
        inner.sweep_all().await;
        let wakes_at = {
            let mut is_on_duty = lock(&inner.sweeper.is_on_duty);
            // Who enters something from here on waits for the lock and corrects the time; what was entered before is seen.
            inner.sweeper.wakes_at.store(UNKNOWN, Ordering::SeqCst);
            let Some(next) = inner.next_expiry() else {
                inner.sweeper.leave(&mut is_on_duty);
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
