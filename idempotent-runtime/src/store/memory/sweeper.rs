//! Frees what has expired, without anyone asking and without a long pause.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{BATCH, Inner, lock};
use crate::sync::tokio;
use crate::sync::tokio::task::JoinHandle;
use crate::sync::tokio::time::Instant;

/// The sweeper rests at least this long, or a busy store would wake it for every single expiry.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct Sweeper {
    task: Option<JoinHandle<()>>,
    wakes_at: Option<Instant>,
}

impl Inner {
    /// Sees to it that the sweeper wakes by then.
    pub(super) fn sweep_at(self: &Arc<Self>, expires_at: Instant) {
        let mut sweeper = lock(&self.sweeper);
        // The task dies with the runtime that it was spawned on, which need not be the last one of the process.
        if sweeper.task.as_ref().is_none_or(JoinHandle::is_finished) {
            sweeper.wakes_at = Some(expires_at);
            sweeper.task = Some(tokio::spawn(sweep_forever(Arc::downgrade(self))));
        } else if sweeper.wakes_at.is_none_or(|wakes_at| expires_at < wakes_at) {
            sweeper.wakes_at = Some(expires_at);
            self.earlier.notify_one();
        }
    }

    /// Frees one batch of every shard; true when something is left that could be freed now.
    pub(super) fn sweep_batch(&self, now: Instant) -> bool {
        let mut left = false;
        for shard in &self.shards {
            left |= self.free_expired(&mut lock(shard), now, BATCH) == BATCH;
        }
        left
    }

    fn next_expiry(&self) -> Option<Instant> {
        self.shards.iter().filter_map(|shard| lock(shard).expiries.first_key_value().map(|(&(at, _), _)| at)).min()
    }
}

#[cfg(all(test, shuttle))]
impl super::MemoryStore {
    /// Leaves what expires to the calls of the store: with the sweeper's steps, the schedules are too many to try all.
    pub(crate) fn without_sweeper(self) -> Self {
        let mut sweeper = lock(&self.0.sweeper);
        sweeper.task = Some(tokio::spawn(std::future::pending()));
        sweeper.wakes_at = Some(Instant::now());
        drop(sweeper);
        self
    }
}

/// Ends when the last handle of the store is gone.
async fn sweep_forever(store: Weak<Inner>) {
    loop {
        let Some(inner) = store.upgrade() else { return };
        while inner.sweep_batch(Instant::now()) {
            tokio::task::yield_now().await;
        }
        let wakes_at = {
            let mut sweeper = lock(&inner.sweeper);
            // Under the lock of `sweep_at`: what is entered later sees this time and corrects it.
            sweeper.wakes_at = inner.next_expiry().map(|at| at.max(Instant::now() + PAUSE));
            let Some(wakes_at) = sweeper.wakes_at else {
                sweeper.task = None;
                return;
            };
            wakes_at
        };
        let earlier = Arc::clone(&inner.earlier);
        drop(inner);
        tokio::select! {
            () = tokio::time::sleep_until(wakes_at) => {}
            () = earlier.notified() => {}
        }
    }
}
