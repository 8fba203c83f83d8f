//! A task of the library that may be spawned more than once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sync::tokio::runtime::Handle;
use crate::sync::tokio::task::JoinHandle;
use crate::sync::{Mutex, RuntimeId, current_runtime, lock, tokio};

/// The time between two beats of a task.
const BEAT: Duration = Duration::from_secs(1);

/// The age of the last beat from which a task stands still. A runtime that a thread drives is late by less than the difference.
const STANDSTILL: Duration = Duration::from_secs(2);

/// At most one task, which ends when this value is dropped.
///
/// A task ends with the runtime that it was spawned on, and stands still while no thread drives that runtime: between two
/// calls of `block_on`, or while a handler blocks the only thread. Other runtimes of the process may go on meanwhile. So
/// the next call on another runtime spawns the task there. The former task is aborted: if its runtime is driven again, it is
/// dropped without being polled. A call on the runtime of the task never replaces it: there, a new one would begin later.
#[derive(Debug, Default)]
pub(crate) struct BackgroundTask {
    running: Mutex<Option<Running>>,
    #[cfg(all(test, shuttle))]
    is_pretended: AtomicBool,
}

#[derive(Debug)]
struct Running {
    handle: JoinHandle<()>,
    runtime: Option<RuntimeId>,
    heart: Arc<Heart>,
}

impl BackgroundTask {
    /// Returns whether the task has not ended, and a thread drives its runtime.
    #[cfg_attr(
        not(any(test, feature = "memory", feature = "redis-sentinel")),
        allow(dead_code, reason = "the owners of the other tasks do not ask")
    )]
    pub(crate) fn is_alive(&self) -> bool {
        #[cfg(all(test, shuttle))]
        if self.is_pretended.load(Ordering::Relaxed) {
            return true;
        }
        lock(&self.running).as_ref().is_some_and(Running::is_alive)
    }

    /// Spawns the task on the runtime of the caller, unless it is alive. Outside of a runtime, the next call in one does.
    pub(crate) fn ensure<F>(&self, task: impl FnOnce() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        #[cfg(all(test, shuttle))]
        if self.is_pretended.load(Ordering::Relaxed) {
            return;
        }
        let mut running = lock(&self.running);
        if running.as_ref().is_some_and(Running::is_alive) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        if let Some(former) = running.take() {
            former.handle.abort();
        }
        let heart = Arc::new(Heart::default());
        let handle = runtime.spawn(with_heartbeat(task(), Arc::clone(&heart)));
        *running = Some(Running { handle, runtime: current_runtime(), heart });
    }

    /// Records that the task is about to return, so that the next call spawns another one. A task that ends when it has
    /// nothing to do calls this under the lock under which it is given something to do.
    pub(crate) fn has_ended(&self) {
        if let Some(running) = &*lock(&self.running) {
            running.heart.has_ended.store(true, Ordering::Relaxed);
        }
    }

    /// Aborts the task.
    pub(crate) fn abort(&self) {
        if let Some(running) = lock(&self.running).take() {
            running.handle.abort();
        }
    }

    /// Makes [`ensure`](Self::ensure) spawn nothing.
    #[cfg(all(test, shuttle))]
    pub(crate) fn pretend_alive(&self) {
        self.is_pretended.store(true, Ordering::Relaxed);
    }
}

impl Drop for BackgroundTask {
    fn drop(&mut self) {
        self.abort();
    }
}

impl Running {
    fn is_alive(&self) -> bool {
        if self.handle.is_finished() || self.heart.has_ended.load(Ordering::Relaxed) {
            return false;
        }
        let current = current_runtime();
        current.is_none() || current == self.runtime || self.heart.beats()
    }
}

async fn with_heartbeat(task: impl Future<Output = ()>, heart: Arc<Heart>) {
    tokio::select! {
        // A task that always has something to do uses up what it may do at once. Then a timer would not be asked.
        biased;
        () = heart.go_on() => {}
        () = task => {}
    }
}

/// Shows whether a task is alive. No other data is published by it.
#[derive(Debug)]
struct Heart {
    made_at: Instant,
    /// The time of the last beat, in milliseconds since the heart was made: the real time, which a test cannot pause. Each
    /// runtime has a paused clock of its own.
    last: AtomicU64,
    has_ended: AtomicBool,
}

impl Default for Heart {
    fn default() -> Self {
        Self { made_at: Instant::now(), last: AtomicU64::new(0), has_ended: AtomicBool::new(false) }
    }
}

impl Heart {
    fn beats(&self) -> bool {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.made_at.elapsed() <= last + STANDSTILL
    }

    #[cfg(not(all(test, shuttle)))]
    async fn go_on(&self) {
        loop {
            let now = u64::try_from(self.made_at.elapsed().as_millis()).unwrap_or(u64::MAX / 2);
            self.last.store(now, Ordering::Relaxed);
            tokio::time::sleep(BEAT).await;
        }
    }

    /// Under the concurrency checker there is one runtime, which is always driven.
    #[cfg(all(test, shuttle))]
    async fn go_on(&self) {
        std::future::pending().await
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::future::pending;

    use ::tokio::runtime::{Builder, Runtime};
    use ::tokio::task::yield_now;

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_time().build().expect("a runtime")
    }

    fn ensure(task: &BackgroundTask, runtime: &Runtime) {
        runtime.block_on(async {
            task.ensure(pending);
            yield_now().await;
        });
    }

    /// Returns the number of tasks, after the aborted ones were dropped.
    fn tasks(runtime: &Runtime) -> usize {
        runtime.block_on(yield_now());
        runtime.metrics().num_alive_tasks()
    }

    /// Lets the last beat be too long ago.
    fn stand_still(task: &BackgroundTask, elsewhere: &Runtime) {
        let began = Instant::now();
        while elsewhere.block_on(async { task.is_alive() }) {
            std::thread::yield_now();
        }
        assert!(began.elapsed() > STANDSTILL / 2);
    }

    #[test]
    fn task_is_spawned_once_while_it_is_alive() {
        let (task, first, second) = (BackgroundTask::default(), runtime(), runtime());
        ensure(&task, &first);
        ensure(&task, &second);
        assert_eq!((tasks(&first), tasks(&second)), (1, 0));
        drop(task);
        assert_eq!(tasks(&first), 0);
    }

    #[test]
    fn task_that_stands_still_is_replaced_by_another_runtime() {
        let (task, first, second) = (BackgroundTask::default(), runtime(), runtime());
        ensure(&task, &first);
        stand_still(&task, &second);
        // Its own runtime does not begin it anew.
        ensure(&task, &first);
        assert_eq!((tasks(&first), tasks(&second)), (1, 0));
        stand_still(&task, &second);
        ensure(&task, &second);
        assert_eq!((tasks(&first), tasks(&second)), (0, 1));
        drop(first);
        ensure(&task, &second);
        assert_eq!(tasks(&second), 1);
    }

    #[test]
    fn task_that_is_driven_stays_alive() {
        let (task, runtime, other) = (BackgroundTask::default(), runtime(), runtime());
        ensure(&task, &runtime);
        // The task is always ready, as one is that gets messages faster than it can handle them.
        let busy = BackgroundTask::default();
        runtime.block_on(async {
            busy.ensure(|| async {
                loop {
                    ::tokio::task::consume_budget().await;
                }
            });
            tokio::time::sleep(STANDSTILL + BEAT / 2).await;
        });
        assert!(other.block_on(async { task.is_alive() && busy.is_alive() }));
    }

    #[test]
    fn task_is_replaced_at_once_after_its_end() {
        let (task, first, second) = (BackgroundTask::default(), runtime(), runtime());
        ensure(&task, &first);
        drop(first);
        assert!(!task.is_alive());
        ensure(&task, &second);
        task.has_ended();
        assert!(!task.is_alive());
        ensure(&task, &second);
        assert_eq!(tasks(&second), 1);
        second.block_on(async {
            task.has_ended();
            task.ensure(|| async {});
            yield_now().await;
        });
        assert!(!task.is_alive());
    }

    #[test]
    fn task_is_not_spawned_outside_of_a_runtime() {
        let task = BackgroundTask::default();
        task.ensure(pending);
        assert!(!task.is_alive());
    }
}
