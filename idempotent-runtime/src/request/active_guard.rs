//! A guard whose handler runs, and what runs beneath it under its claim.

use std::sync::Arc;

use axum::response::Response;
use http::response::Parts;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::request::context::Execution;
use crate::request::covered_run::Answer;
use crate::request::covered_runs::CoveredRuns;
use crate::sync::atomic::Ordering;

/// The guard while its handler runs. When it is dropped, its claim is over, and nothing runs under it any more.
pub(crate) struct ActiveGuard(Arc<Execution>);

impl ActiveGuard {
    /// For as long as the claim is held. A drain that counts it waits for what runs under it too.
    pub(super) fn of(execution: &Arc<Execution>, counted: Option<TaskTrackerToken>) -> Self {
        execution.run.covered_runs.count(counted);
        Self(Arc::clone(execution))
    }

    pub(super) fn execution(&self) -> &Arc<Execution> {
        &self.0
    }

    /// Whether it is the execution of this guard, or of one around it.
    pub(super) fn is_beneath(&self, other: &Arc<Execution>) -> bool {
        self.0.is_beneath(other)
    }

    pub(super) fn is_of(&self, execution: &Arc<Execution>) -> bool {
        Arc::ptr_eq(&self.0, execution)
    }

    /// Whether a response with this head is a rejection, which is never recorded.
    pub(super) fn is_rejection(&self, parts: &mut Parts) -> bool {
        self.0.is_rejection(parts)
    }

    /// What runs beneath the guard under this claim.
    pub(super) fn covered_runs(&self) -> &CoveredRuns {
        &self.0.run.covered_runs
    }

    /// Takes the mark of a handler that ran under this claim from the response, and notes that its answer has arrived.
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
