//! A handler that runs beneath another guard, under that guard's claim.

use std::sync::Arc;

use crate::request::context::Execution;
use crate::sync::atomic::Ordering;

/// The claim cannot end before this run. If this is dropped before [`end`](Self::end), it is unknown what the run did.
pub(super) struct CoveredRun {
    execution: Arc<Execution>,
    covering: Arc<Execution>,
    has_ended: bool,
}

impl CoveredRun {
    pub(super) fn begin(execution: Arc<Execution>, covering: Arc<Execution>) -> Self {
        covering.covered_runs.running.fetch_add(1, Ordering::AcqRel);
        // As a handler that holds a claim of its own.
        execution.detach_state.set_must_finish(true);
        Self { execution, covering, has_ended: false }
    }

    pub(super) fn execution(&self) -> &Arc<Execution> {
        &self.execution
    }

    /// The handler has responded. A run that was cut off between the guards has not: its response reached no client.
    pub(super) fn end(mut self) {
        self.has_ended = !self.execution.detach_state.is_abandoned();
    }
}

impl Drop for CoveredRun {
    fn drop(&mut self) {
        let runs = &self.covering.covered_runs;
        if !self.has_ended {
            runs.was_cut_off.store(true, Ordering::Release);
        }
        runs.running.fetch_sub(1, Ordering::AcqRel);
        runs.ended.notify_waiters();
    }
}
