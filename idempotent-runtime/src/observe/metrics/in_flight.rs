//! Counts a handler for as long as it runs.

use crate::observe::metrics::meters::METERS;
use crate::observe::metrics::scope::Scope;

/// One handler that runs, until it is dropped: however it ends.
pub(crate) struct InFlight {
    scope: &'static Scope,
    number: u64,
}

impl InFlight {
    pub(crate) fn enter(scope: &str) -> Self {
        let scope = METERS.scope(scope);
        Self { scope, number: scope.enter() }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.scope.leave(self.number);
    }
}
