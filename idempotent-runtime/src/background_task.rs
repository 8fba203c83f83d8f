//! A task of the library that may be spawned more than once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sync::tokio::runtime::Handle;
use crate::sync::tokio::task::JoinHandle;
use crate::sync::{Mutex, lock, tokio};

/// The time between two beats of a task.
const BEAT: Duration = Duration::from_secs(1);

/// The age of the last beat, in milliseconds, above which a task is replaced. A runtime that a thread drives is late by less
/// than the difference.
const STANDSTILL: u64 = 2_000;

/// At most one task, which ends when this value is dropped.
///
/// A task ends with the runtime that it was spawned on, and stands still while no thread drives that runtime: between two
/// calls of `block_on`, or while a handler blocks the only thread. Other runtimes of the process may go on meanwhile. So
/// the next call that needs the task spawns it again, on the runtime of that call. The former task is aborted: if its
/// runtime is driven again, it is dropped without being polled.
#[derive(Debug, Default)]
pub(crate) struct BackgroundTask {
    heart: Arc<Heart>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl BackgroundTask {
    /// Returns whether the task has not ended, and a thread drives its runtime.
    pub(crate) fn is_alive(&self) -> bool {
        self.heart.beats()
    }

    /// Spawns the task on the runtime of the caller, unless it is alive. Outside of a runtime, the next call in one does.
    pub(crate) fn ensure<F>(&self, task: impl FnOnce() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.is_alive() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        let mut handle = lock(&self.handle);
        if self.is_alive() {
            return;
        }
        if let Some(former) = handle.take() {
            former.abort();
        }
        // A runtime that shuts down drops the task here, and with it `Life`, which takes no lock.
        *handle = Some(runtime.spawn(with_heartbeat(task(), Life::begin(&self.heart))));
    }

    /// Records that the task is about to return, so that the next call spawns another one. A task that ends when it has
    /// nothing to do calls this under the lock under which it is given something to do.
    pub(crate) fn has_ended(&self) {
        self.heart.end(None);
    }

    /// Makes [`ensure`](Self::ensure) spawn nothing.
    #[cfg(all(test, shuttle))]
    pub(crate) fn pretend_alive(&self) {
        self.heart.last.store(1, Ordering::Relaxed);
    }
}

impl Drop for BackgroundTask {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.handle).take() {
            task.abort();
        }
    }
}

async fn with_heartbeat(task: impl Future<Output = ()>, life: Life) {
    tokio::select! {
        biased;
        () = task => {}
        () = life.go_on() => {}
    }
}

/// The bits of [`Heart::last`] that tell the time of the last beat: 34 years of milliseconds.
const TIME: u32 = 40;

/// Shows whether the last task is alive.
///
/// No other data is published by it. So its order among other accesses is that of the lock of the task, or of the owner.
#[derive(Debug)]
struct Heart {
    made_at: Instant,
    /// The number of the last task, and the time of its last beat in milliseconds, which is 0 after its end.
    last: AtomicU64,
}

impl Default for Heart {
    fn default() -> Self {
        Self { made_at: Instant::now(), last: AtomicU64::new(0) }
    }
}

impl Heart {
    /// The real time, which a test cannot pause: each runtime has a paused clock of its own.
    fn now(&self) -> u64 {
        let millis = u64::try_from(self.made_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        millis.saturating_add(1).min((1 << TIME) - 1)
    }

    fn beats(&self) -> bool {
        let last = self.last.load(Ordering::Relaxed) & ((1 << TIME) - 1);
        // Under the concurrency checker there is one runtime, which is always driven.
        last != 0 && (cfg!(all(test, shuttle)) || self.now() <= last.saturating_add(STANDSTILL))
    }

    fn beat(&self, number: u64) {
        let beat = |last: u64| (last >> TIME == number).then(|| number << TIME | self.now());
        let _ = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, beat);
    }

    /// Ends the last task, if it has this number.
    fn end(&self, number: Option<u64>) {
        let end = |last: u64| number.is_none_or(|number| last >> TIME == number).then_some(last >> TIME << TIME);
        let _ = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, end);
    }
}

/// The life of one task. The task that replaced it has a number of its own, so the former one cannot end it.
struct Life {
    heart: Arc<Heart>,
    number: u64,
}

impl Life {
    /// The caller holds the lock of the task.
    fn begin(heart: &Arc<Heart>) -> Self {
        let number = (heart.last.load(Ordering::Relaxed) >> TIME).wrapping_add(1) & (u64::MAX >> TIME);
        heart.last.store(number << TIME | heart.now(), Ordering::Relaxed);
        Self { heart: Arc::clone(heart), number }
    }

    #[cfg(not(all(test, shuttle)))]
    async fn go_on(&self) {
        loop {
            self.heart.beat(self.number);
            tokio::time::sleep(BEAT).await;
        }
    }

    #[cfg(all(test, shuttle))]
    async fn go_on(&self) {
        std::future::pending().await
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.heart.end(Some(self.number));
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
    fn age(task: &BackgroundTask) {
        let heart = Arc::clone(&task.heart);
        let number = heart.last.load(Ordering::Relaxed) >> TIME;
        heart.last.store(number << TIME | 1, Ordering::Relaxed);
        while task.is_alive() {
            std::thread::yield_now();
        }
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
    fn task_that_stands_still_is_replaced_and_never_polled_again() {
        let (task, first, second) = (BackgroundTask::default(), runtime(), runtime());
        ensure(&task, &first);
        age(&task);
        ensure(&task, &second);
        // The former task is dropped here, which does not end the one that replaced it.
        assert_eq!((tasks(&first), tasks(&second)), (0, 1));
        assert!(task.is_alive());
        drop(first);
        ensure(&task, &second);
        assert_eq!(tasks(&second), 1);
    }

    #[test]
    fn task_that_is_driven_stays_alive() {
        let (task, runtime) = (BackgroundTask::default(), runtime());
        ensure(&task, &runtime);
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(STANDSTILL + 500)).await });
        assert!(task.is_alive());
    }

    #[test]
    fn task_is_replaced_at_once_after_its_end() {
        let (task, first, second) = (BackgroundTask::default(), runtime(), runtime());
        ensure(&task, &first);
        drop(first);
        assert!(!task.is_alive());
        ensure(&task, &second);
        task.has_ended();
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
