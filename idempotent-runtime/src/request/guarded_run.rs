//! The state with which a handler runs under a guard, whether a claim or a transaction holds its key.

use axum::response::Response;
use tracing::Span;

use crate::caller_limit::Permit;
use crate::observe::InFlight;
use crate::registry::Registry;
use crate::rejection::problem::Rejection;
use crate::request::active_guard::ActiveGuard;
use crate::request::respond::ResponseClassifier;
use crate::running_limit::RunningPermit;

/// The state with which a handler runs under a guard, until the run is settled.
pub(super) struct GuardedRun {
    pub(super) registry: Registry,
    pub(super) classifier: ResponseClassifier,
    pub(super) span: Span,
    /// Until the run is settled, a request that the handler forwards runs under the claim of this guard.
    pub(super) guard: ActiveGuard,
    pub(super) _permits: Permits,
    pub(super) _in_flight: InFlight,
}

impl GuardedRun {
    /// Returns the function that makes the rejection which replaces the response of the run. It can be called when the
    /// run is settled.
    pub(super) fn rejecter(&self) -> impl FnOnce(Rejection) -> Response + Send + use<> {
        let (registry, scope) = (self.registry.clone(), self.classifier.policy.owned_scope());
        let audience = self.guard.execution().audience();
        move |rejection| registry.reject(&scope, rejection, &audience)
    }
}

/// The permits that a run holds until it is settled, if the number of runs is limited.
#[derive(Default)]
pub(super) struct Permits {
    pub(super) caller: Option<Permit>,
    pub(super) running: Option<RunningPermit>,
}
