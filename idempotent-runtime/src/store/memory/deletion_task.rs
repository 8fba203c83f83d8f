//! Whether a task of the store frees what expires, and when it wakes.

use std::sync::Arc;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::tokio::sync::Notify;

/// No task runs, or it is about to find the next expiry.
pub(super) const UNKNOWN: u64 = u64::MAX;

/// The task that deletes what expires.
pub(super) struct DeletionTask {
    /// In nanoseconds since the store began. Written under the lock, and read without it: a claim need not take it.
    pub(super) wakes_at: AtomicU64,
    /// No `BackgroundTask`: the task ends under this lock, and a runtime that shuts down drops it without an await.
    pub(super) has_task: Mutex<bool>,
    /// In an `Arc` of its own, so that the task can sleep without holding the store.
    pub(super) earlier: Arc<Notify>,
}

impl Default for DeletionTask {
    fn default() -> Self {
        Self { wakes_at: AtomicU64::new(UNKNOWN), has_task: Mutex::default(), earlier: Arc::default() }
    }
}

impl DeletionTask {
    /// Wakes the task, which ends when the store is gone.
    pub(super) fn wake(&self) {
        self.earlier.notify_one();
    }

    /// It has ended: the next entry that expires spawns another one.
    pub(super) fn has_ended(&self, has_task: &mut bool) {
        *has_task = false;
        self.wakes_at.store(UNKNOWN, Ordering::SeqCst);
    }
}
