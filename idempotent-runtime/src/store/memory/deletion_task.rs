//! The state of the task that deletes expired entries: whether it runs, and when it wakes.

use std::sync::Arc;
use std::time::Duration;

use crate::background_task::BackgroundTask;
use crate::store::memory::stored::Moment;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::tokio::sync::Notify;

/// No task runs, or the task is about to find the next expiry.
pub(super) const UNKNOWN: u64 = u64::MAX;

/// The task that deletes expired entries.
pub(super) struct DeletionTask {
    /// The time at which the task wakes, in nanoseconds since the store began. It is written under the lock and read
    /// without it, so a claim need not take the lock.
    pub(super) wakes_at: AtomicU64,
    /// The lock under which `wakes_at` is written. Contains the notification of an earlier expiry, which the task that was spawned
    /// last waits for: a former task that stands still must not take it. Only the last task writes `wakes_at`.
    pub(super) earlier: Mutex<Arc<Notify>>,
    pub(super) task: BackgroundTask,
    /// The pace of scans for claims that found the store full.
    pub(super) full: ScanPace,
    /// The pace of scans for claims that found the share of their owner used up.
    pub(super) over_quota: ScanPace,
}

impl Default for DeletionTask {
    fn default() -> Self {
        Self {
            wakes_at: AtomicU64::new(UNKNOWN),
            earlier: Mutex::default(),
            task: BackgroundTask::default(),
            full: ScanPace::default(),
            over_quota: ScanPace::default(),
        }
    }
}

/// A limit on scans. If each rejected claim scanned all shards, the client that sends them would slow down the others.
#[derive(Default)]
pub(super) struct ScanPace(AtomicU64);

impl ScanPace {
    const PAUSE: Duration = Duration::from_millis(10);

    /// Returns whether a scan is due. Of concurrent callers, only one gets true.
    pub(super) fn may_scan(&self, now: Moment) -> bool {
        let nanos = |moment: Moment| u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX);
        let next = self.0.load(Ordering::Relaxed);
        let after = nanos(now.saturating_add(Self::PAUSE));
        next <= nanos(now) && self.0.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Allows the next scan at once, because the last one found expired entries.
    pub(super) fn found(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl DeletionTask {
    /// Returns whether the task should have deleted expired entries by now, but has ended or stands still. The time of a
    /// task that wakes in the future is not asked for.
    pub(super) fn is_overdue(&self, now: Moment) -> bool {
        self.may_be_overdue(now) && !self.task.is_alive()
    }

    /// Returns whether there may be expired entries that the task has not deleted yet.
    pub(super) fn may_be_overdue(&self, now: Moment) -> bool {
        let wakes_at = self.wakes_at.load(Ordering::SeqCst);
        wakes_at == UNKNOWN || Moment::from_nanos(wakes_at) <= now
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn scan_in_vain_is_followed_by_none_for_10_milliseconds() {
        let (pace, at) = (ScanPace::default(), Moment::from_millis);
        assert!(pace.may_scan(at(1)));
        assert!(!pace.may_scan(at(1)) && !pace.may_scan(at(10)));
        assert!(pace.may_scan(at(11)) && !pace.may_scan(at(11)));
        pace.found();
        assert!(pace.may_scan(at(11)));
    }
}
