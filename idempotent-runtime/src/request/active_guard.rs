//! A guard while its handler runs, and the runs beneath the guard that use its claim.

use std::sync::Arc;

use axum::response::Response;
use http::response::Parts;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::request::context::Execution;
use crate::request::covered_run::Answer;
use crate::request::covered_runs::CoveredRuns;
use crate::sync::atomic::Ordering;

/// The guard while its handler runs. When this value is dropped, the claim has ended, and nothing runs under the claim
/// any more.
pub(crate) struct ActiveGuard(Arc<Execution>);

impl ActiveGuard {
    /// Creates the active guard of an execution. A drain waits until `counted` is dropped: when the claim and all runs
    /// under it have ended.
    pub(super) fn of(execution: &Arc<Execution>, counted: Option<TaskTrackerToken>) -> Self {
        execution.run.covered_runs.count(counted);
        Self(Arc::clone(execution))
    }

    pub(super) fn execution(&self) -> &Arc<Execution> {
        &self.0
    }

    /// Returns whether `other` is the execution of this guard, or of a guard around this one.
    pub(super) fn is_beneath(&self, other: &Arc<Execution>) -> bool {
        self.0.is_beneath(other)
    }

    pub(super) fn is_of(&self, execution: &Arc<Execution>) -> bool {
        Arc::ptr_eq(&self.0, execution)
    }

    /// Returns whether a response with this head is a rejection, which is never recorded.
    pub(super) fn is_rejection(&self, parts: &mut Parts) -> bool {
        self.0.is_rejection(parts)
    }

    /// Returns the runs beneath the guard that use its claim.
    pub(super) fn covered_runs(&self) -> &CoveredRuns {
        &self.0.run.covered_runs
    }

    /// Removes the mark that a handler under this claim left on the response, and records that its answer has arrived.
    pub(super) fn take_answer(&self, response: &mut Response) {
        let extensions = response.extensions_mut();
        if matches!(extensions.get(), Some(Answer(covering)) if self.is_of(covering)) {
            extensions.remove::<Answer>();
            self.0.run.covered_runs.answer_received();
        }
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.claim.is_over.store(true, Ordering::Release);
        self.0.run.covered_runs.claim_ended();
    }
}
