//! Limits how many guarded handlers run, with or without their clients: in the registry, and in each scope.

use std::collections::HashMap;
use std::sync::Arc;

use crate::policy::scope::Scope;
use crate::sync::{Mutex, lock};

/// Counts the handlers that run.
pub(crate) struct RunningLimit {
    pub(crate) most: usize,
    pub(crate) most_per_scope: usize,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    all: usize,
    by_scope: HashMap<Scope, usize>,
}

impl RunningLimit {
    pub(crate) fn new(most: usize, most_per_scope: usize) -> Self {
        Self { most, most_per_scope, running: Mutex::default() }
    }

    /// Returns a permit to hold while the handler runs; `None` if the maximum number of handlers run.
    pub(crate) fn acquire(self: &Arc<Self>, scope: Scope) -> Option<RunningPermit> {
        let mut running = lock(&self.running);
        if running.all >= self.most {
            return None;
        }
        // The number of scopes is that of the program's policies. They are never removed, so the next request allocates
        // nothing.
        match running.by_scope.get_mut(&scope) {
            Some(count) if *count >= self.most_per_scope => return None,
            Some(count) => *count += 1,
            None => {
                running.by_scope.insert(scope.clone(), 1);
            }
        }
        running.all += 1;
        drop(running);
        Some(RunningPermit { limit: Arc::clone(self), scope })
    }
}

/// Counts one handler that runs, or may begin to run, until it is dropped.
pub(crate) struct RunningPermit {
    limit: Arc<RunningLimit>,
    scope: Scope,
}

impl Drop for RunningPermit {
    fn drop(&mut self) {
        let mut running = lock(&self.limit.running);
        running.all -= 1;
        if let Some(count) = running.by_scope.get_mut(&self.scope) {
            *count -= 1;
        }
    }
}
