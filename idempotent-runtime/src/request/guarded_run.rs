//! What a handler runs with under a guard, however its key is held.

use tracing::Span;

use crate::caller_limit::Permit;
use crate::observe::InFlight;
use crate::registry::Registry;
use crate::request::active_guard::ActiveGuard;
use crate::request::respond::ResponseClassifier;
use crate::running_limit::RunningPermit;

/// What a handler runs with under a guard, until it is settled.
pub(super) struct GuardedRun {
    pub(super) registry: Registry,
    pub(super) classifier: ResponseClassifier,
    pub(super) span: Span,
    /// Until this is settled, a request that the handler forwards runs under its claim.
    pub(super) guard: ActiveGuard,
    pub(super) _permits: Permits,
    pub(super) _in_flight: InFlight,
}

/// The permits that an execution holds until it is settled, where executions are limited.
#[derive(Default)]
pub(super) struct Permits {
    pub(super) caller: Option<Permit>,
    pub(super) running: Option<RunningPermit>,
}
