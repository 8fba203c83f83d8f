//! The claims that requests of this process have asked a store for, and that have no answer yet.
//!
//! A handler whose claim the store has forgotten, or whose lease has run out, may find the key taken when it ends: by another
//! process, or by a request of this one that has not heard of it yet. That one will leave its claim to the handler, which waits
//! for it.

use std::hash::BuildHasher;
use std::pin::pin;

use futures_util::FutureExt as _;

use crate::key::RecordKey;
use crate::sync::KeyHasher;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::tokio::sync::Notify;

// Keys that share a counter wait for each other, in an end that is rare.
const COUNTERS: usize = 64;

pub(super) struct Asked {
    hasher: KeyHasher,
    counters: [Counter; COUNTERS],
}

/// Alone in its line of the cache.
#[repr(align(64))]
struct Counter {
    asked: AtomicUsize,
    waiting: AtomicUsize,
    answered: Notify,
}

impl Default for Asked {
    fn default() -> Self {
        let counter = |_| Counter { asked: AtomicUsize::new(0), waiting: AtomicUsize::new(0), answered: Notify::new() };
        Self { hasher: KeyHasher::default(), counters: std::array::from_fn(counter) }
    }
}

impl Asked {
    /// From before a store is asked for a claim of `key` until it is known what becomes of its answer.
    pub(super) fn enter(&self, key: &RecordKey) -> OnItsWay<'_> {
        let counter = self.counter(key);
        counter.asked.fetch_add(1, Ordering::SeqCst);
        OnItsWay(counter)
    }

    /// Whether a claim of `key` may be on its way.
    pub(super) fn is_any(&self, key: &RecordKey) -> bool {
        self.counter(key).asked.load(Ordering::SeqCst) > 0
    }

    /// Waits until no claim of `key` is on its way, or `is_enough`, which is asked after each answer.
    pub(super) async fn answered(&self, key: &RecordKey, is_enough: impl Fn() -> bool) {
        let counter = self.counter(key);
        counter.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(&counter.waiting);
        loop {
            let mut answered = pin!(counter.answered.notified());
            // Listens before it looks.
            let is_answered = answered.as_mut().now_or_never().is_some();
            if !self.is_any(key) || is_enough() {
                return;
            }
            if !is_answered {
                answered.await;
            }
        }
    }

    fn counter(&self, key: &RecordKey) -> &Counter {
        let number = usize::try_from(self.hasher.hash_one(key) % COUNTERS as u64).unwrap_or_default();
        &self.counters[number]
    }
}

/// A claim that is on its way.
pub(crate) struct OnItsWay<'a>(&'a Counter);

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        self.0.asked.fetch_sub(1, Ordering::SeqCst);
        if self.0.waiting.load(Ordering::SeqCst) > 0 {
            self.0.answered.notify_waiters();
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
