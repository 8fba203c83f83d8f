//! Limits how many guarded handlers run, with or without their clients: in the registry, and in each scope.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use crate::policy::scope::Scope;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::unpoisoned;

/// Counts the handlers that run.
pub(crate) struct RunningLimit {
    pub(crate) most: usize,
    pub(crate) most_per_scope: usize,
    all: Arc<AtomicUsize>,
    /// The number of scopes is that of the program's policies. They are never removed, so the next request allocates nothing and
    /// waits for no other one.
    by_scope: RwLock<HashMap<Scope, Arc<OfScope>>>,
}

/// Counts the handlers of one scope that run.
struct OfScope {
    running: AtomicUsize,
    /// The number of all handlers. It is here, so that a permit holds one pointer.
    all: Arc<AtomicUsize>,
}

impl RunningLimit {
    pub(crate) fn new(most: usize, most_per_scope: usize) -> Self {
        Self { most, most_per_scope, all: Arc::default(), by_scope: RwLock::default() }
    }

    /// Returns a permit to hold while the handler runs; `None` if the maximum number of handlers run.
    pub(crate) fn acquire(&self, scope: Scope) -> Option<RunningPermit> {
        let of_scope = self.of_scope(scope);
        // The scope first: a request of a full scope must not count against other scopes, not even for a moment.
        if !try_count(&of_scope.running, self.most_per_scope) {
            return None;
        }
        if !try_count(&self.all, self.most) {
            of_scope.running.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(RunningPermit(of_scope))
    }

    fn of_scope(&self, scope: Scope) -> Arc<OfScope> {
        let known = unpoisoned(self.by_scope.read()).get(&scope).cloned();
        known.unwrap_or_else(|| {
            let mut by_scope = unpoisoned(self.by_scope.write());
            let new = || Arc::new(OfScope { running: AtomicUsize::new(0), all: Arc::clone(&self.all) });
            Arc::clone(by_scope.entry(scope).or_insert_with(new))
        })
    }
}

/// Counts one more unless there are `most`. In one step: two requests must not both become the last one.
fn try_count(running: &AtomicUsize, most: usize) -> bool {
    let one_more = |running| (running < most).then_some(running + 1);
    running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
}

/// Counts one handler that runs, or may begin to run, until it is dropped.
pub(crate) struct RunningPermit(Arc<OfScope>);

impl Drop for RunningPermit {
    fn drop(&mut self) {
        self.0.all.fetch_sub(1, Ordering::Relaxed);
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}
