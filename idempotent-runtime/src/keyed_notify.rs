//! The bells that wake waiters.

use std::hash::BuildHasher;

use crate::key::RecordKey;
use crate::sync::KeyHasher;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::tokio::sync::Notify;

/// Wakes this process's waiters when a claim has ended.
pub(crate) struct KeyedNotify {
    hasher: KeyHasher,
    waiting: AtomicUsize,
    // Keys that share a bell wake each other for nothing, which costs one more look.
    bells: [Notify; 64],
}

impl Default for KeyedNotify {
    fn default() -> Self {
        Self {
            hasher: KeyHasher::default(),
            waiting: AtomicUsize::new(0),
            bells: std::array::from_fn(|_| Notify::new()),
        }
    }
}

impl KeyedNotify {
    /// Wakes those who wait for the end of the claim of `key`.
    pub(crate) fn notify(&self, key: &RecordKey) {
        // Who counts itself after this load looks at the store after the end that is rung for.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.bell(key).notify_waiters();
        }
    }

    /// Resolves when the claim of `key` may have ended since the first poll.
    pub(crate) async fn ended(&self, key: &RecordKey) {
        let _waiting = Waiting::enter(&self.waiting);
        self.bell(key).notified().await;
    }

    fn bell(&self, key: &RecordKey) -> &Notify {
        &self.bells[usize::try_from(self.hasher.hash_one(key) % 64).unwrap_or_default()]
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
