//! Wakes the waiters of one key.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::tokio::sync::Notify;
use crate::sync::{KeyHasher, Mutex, lock};

/// Notifies the waiters of a key when its claim has ended.
#[derive(Default)]
pub(crate) struct KeyedNotify {
    hasher: KeyHasher,
    waiting: AtomicUsize,
    /// By the hash of the key, under a secret of the process: each key that is waited for has its own `Notify`.
    by_key: Mutex<HashMap<u64, Waiters>>,
}

#[derive(Default)]
struct Waiters {
    notify: Arc<Notify>,
    count: usize,
}

impl KeyedNotify {
    /// Wakes the waiters of `key`.
    pub(crate) fn notify(&self, key: &(impl Hash + ?Sized)) {
        // If a waiter is counted after this load, it looks at the store after the claim has ended, so it needs no notification.
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let hash = self.hasher.hash_one(key);
        let notify = lock(&self.by_key).get(&hash).map(|waiters| Arc::clone(&waiters.notify));
        if let Some(notify) = notify {
            notify.notify_waiters();
        }
    }

    /// Wakes all waiters: it is not known what ended.
    #[cfg_attr(not(any(feature = "postgres", feature = "redis")), expect(dead_code, reason = "of listeners"))]
    pub(crate) fn notify_all(&self) {
        let all: Vec<_> = lock(&self.by_key).values().map(|waiters| Arc::clone(&waiters.notify)).collect();
        for notify in all {
            notify.notify_waiters();
        }
    }

    /// Resolves when `key` has been notified since the first poll.
    pub(crate) async fn notified(&self, key: &(impl Hash + ?Sized)) {
        let (_waiting, notify) = Waiting::new(self, self.hasher.hash_one(key));
        notify.notified().await;
    }
}

struct Waiting<'a> {
    all: &'a KeyedNotify,
    hash: u64,
}

impl<'a> Waiting<'a> {
    fn new(all: &'a KeyedNotify, hash: u64) -> (Self, Arc<Notify>) {
        all.waiting.fetch_add(1, Ordering::SeqCst);
        let mut by_key = lock(&all.by_key);
        let waiters = by_key.entry(hash).or_default();
        waiters.count += 1;
        let notify = Arc::clone(&waiters.notify);
        drop(by_key);
        (Self { all, hash }, notify)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut by_key = lock(&self.all.by_key);
        if let Some(waiters) = by_key.get_mut(&self.hash) {
            waiters.count -= 1;
            if waiters.count == 0 {
                by_key.remove(&self.hash);
            }
        }
        drop(by_key);
        self.all.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::KeyedNotify;

    #[test]
    fn other_keys_wake_no_waiter_and_its_own_key_does() {
        let all = KeyedNotify::default();
        let mut waiter = pin!(all.notified("mine"));
        assert_eq!(waiter.as_mut().now_or_never(), None);
        for other in 0..10_000 {
            all.notify(&other.to_string());
        }
        assert_eq!(waiter.as_mut().now_or_never(), None);
        all.notify("mine");
        assert_eq!(waiter.as_mut().now_or_never(), Some(()));
    }

    #[test]
    fn waiters_that_are_gone_leave_nothing() {
        let all = KeyedNotify::default();
        for key in 0..100 {
            assert_eq!(all.notified(&key).now_or_never(), None);
        }
        assert!(all.by_key.lock().is_ok_and(|by_key| by_key.is_empty()));
    }
}
