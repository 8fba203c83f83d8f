//! A task of the library that may be spawned more than once.

use tokio::task::JoinHandle;

use crate::sync::{Mutex, lock};

/// At most one task, which ends when this value is dropped.
///
/// A task ends with the runtime that it was spawned on, which need not be the last one of the process. So the next call
/// that needs the task spawns it again.
#[derive(Debug, Default)]
pub(crate) struct BackgroundTask(Mutex<Option<JoinHandle<()>>>);

impl BackgroundTask {
    /// Spawns the task if it does not run. The caller must be in a runtime.
    pub(crate) fn ensure<F>(&self, task: impl FnOnce() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut running = lock(&self.0);
        if running.as_ref().is_none_or(JoinHandle::is_finished) {
            *running = Some(tokio::spawn(task()));
        }
    }
}

impl Drop for BackgroundTask {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.0).take() {
            task.abort();
        }
    }
}
