//! A guard that holds a claim, and what runs beneath it under that claim.

use std::sync::Arc;

use crate::request::context::Execution;
use crate::sync::atomic::Ordering;

/// Nothing runs under the claim of this execution when it is dropped.
pub(crate) struct Holding(Arc<Execution>);

impl Holding {
    /// For as long as the claim is held.
    pub(super) fn of(execution: &Arc<Execution>) -> Self {
        Self(Arc::clone(execution))
    }

    pub(super) fn execution(&self) -> &Arc<Execution> {
        &self.0
    }

    /// Whether it is the execution of this guard, or of one around it.
    pub(super) fn is_beneath(&self, other: &Arc<Execution>) -> bool {
        let mut execution = Some(&self.0);
        while let Some(this) = execution {
            if Arc::ptr_eq(this, other) {
                return true;
            }
            execution = this.around();
        }
        false
    }

    pub(super) fn is_of(&self, execution: &Arc<Execution>) -> bool {
        Arc::ptr_eq(&self.0, execution)
    }

    pub(super) fn is_beneath_a_guard(&self) -> bool {
        self.0.around().is_some()
    }

    /// Whether something runs under this claim beneath its guard, though the guard's own handler has ended.
    pub(super) fn covers_a_run(&self) -> bool {
        self.0.covered_runs.running.load(Ordering::Acquire) > 0
    }

    /// Whether something that ran under this claim was dropped half way, or panicked.
    pub(super) fn has_cut_off_a_run(&self) -> bool {
        self.0.covered_runs.was_cut_off.load(Ordering::Acquire)
    }

    pub(super) async fn until_covered_runs_ended(&self) {
        loop {
            // Made before the look: it hears of an end that comes in between.
            let ended = self.0.covered_runs.ended.notified();
            if !self.covers_a_run() {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
    }
}
