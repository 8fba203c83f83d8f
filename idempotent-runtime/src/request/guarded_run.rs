//! The state with which a handler runs under a guard, whether a claim or a transaction holds its key.

use tracing::Span;

use crate::caller_limit::Permit;
use crate::observe::InFlight;
use crate::registry::Registry;
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

/// The permits that a run holds until it is settled, if the number of runs is limited.
#[derive(Default)]
pub(super) struct Permits {
    pub(super) caller: Option<Permit>,
    pub(super) running: Option<RunningPermit>,
}
