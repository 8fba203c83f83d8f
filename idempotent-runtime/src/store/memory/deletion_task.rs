//! The state of the task that deletes expired entries: whether it runs, and when it wakes.

use std::sync::Arc;
use std::time::Duration;

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
    /// Not a `BackgroundTask`: the task ends under this lock, and a runtime that shuts down drops it without an await.
    pub(super) has_task: Mutex<bool>,
    /// The notification of an earlier expiry. It has its own `Arc`, so that the task can sleep without holding the store.
    pub(super) earlier: Arc<Notify>,
    /// The pace of scans for claims that found the store full.
    pub(super) full: ScanPace,
    /// The pace of scans for claims that found the share of their owner used up.
    pub(super) over_quota: ScanPace,
}

impl Default for DeletionTask {
    fn default() -> Self {
        Self {
            wakes_at: AtomicU64::new(UNKNOWN),
            has_task: Mutex::default(),
            earlier: Arc::default(),
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
    /// Wakes the task, which ends if the store is gone.
    pub(super) fn wake(&self) {
        self.earlier.notify_one();
    }

    /// Records that the task has ended. The next entry that expires spawns another one.
    pub(super) fn has_ended(&self, has_task: &mut bool) {
        *has_task = false;
        self.wakes_at.store(UNKNOWN, Ordering::SeqCst);
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
