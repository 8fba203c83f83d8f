//! Wakes those who wait for one key.

use std::hash::{BuildHasher, Hash};

use crate::sync::KeyHasher;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::tokio::sync::Notify;

/// Keys that share one of these wake each other for nothing, which costs one more look.
const SIZE: usize = 256;

/// Notifies the waiters of a key when its claim has ended.
pub(crate) struct KeyedNotify {
    hasher: KeyHasher,
    waiting: AtomicUsize,
    by_key: [Notify; SIZE],
}

impl Default for KeyedNotify {
    fn default() -> Self {
        Self {
            hasher: KeyHasher::default(),
            waiting: AtomicUsize::new(0),
            by_key: std::array::from_fn(|_| Notify::new()),
        }
    }
}

impl KeyedNotify {
    /// Wakes those who wait for `key`.
    pub(crate) fn notify(&self, key: &(impl Hash + ?Sized)) {
        // A waiter that is counted after this load looks at the store after the end that this tells of.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.of(key).notify_waiters();
        }
    }

    /// Wakes everybody who waits: what ended is not known.
    #[cfg_attr(not(any(feature = "postgres", feature = "redis")), expect(dead_code, reason = "of listeners"))]
    pub(crate) fn notify_all(&self) {
        self.by_key.iter().for_each(Notify::notify_waiters);
    }

    /// Resolves when `key` has been notified since the first poll.
    pub(crate) async fn notified(&self, key: &(impl Hash + ?Sized)) {
        let _waiting = Waiting::enter(&self.waiting);
        self.of(key).notified().await;
    }

    fn of(&self, key: &(impl Hash + ?Sized)) -> &Notify {
        let hash = self.hasher.hash_one(key) % SIZE as u64;
        &self.by_key[usize::try_from(hash).unwrap_or_default()]
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
