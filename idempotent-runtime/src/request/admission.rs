//! The state of a request on its way to a claim, and its rejection if it gets none.

use std::sync::Arc;

use axum::response::Response;
use tracing::Span;

use crate::fingerprint::Fingerprint;
use crate::observe;
use crate::observe::event::Event;
use crate::observe::telemetry;
use crate::observe::telemetry::Outcome;
use crate::observe::traceparent::TraceParent;
use crate::policy::CacheIf;
use crate::policy::handle::PolicyHandle;
use crate::registry::Registry;
use crate::rejection::problem::{Rejection, UNAVAILABLE};
use crate::request::active_guard::ActiveGuard;
use crate::request::context::Execution;
use crate::request::guarded_run::{GuardedRun, Permits};
use crate::request::respond::ResponseClassifier;
use crate::store::handle::StoreHandle;
use crate::transaction::contract::HandlerTransaction;
use crate::transaction::error::TransactionError;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// One request on its way to a claim.
pub(super) struct Admission {
    pub(super) policy: PolicyHandle,
    pub(super) registry: Option<Registry>,
    pub(super) span: Span,
    pub(super) cache_if: Option<CacheIf>,
    pub(super) trace: Option<Box<TraceParent>>,
    pub(super) execution: Arc<Execution>,
    pub(super) transaction: Option<Arc<dyn HandlerTransaction>>,
}

impl Admission {
    /// Lets the handler run.
    pub(super) fn into_run(
        self,
        registry: Registry,
        fingerprint: Fingerprint,
        running: Option<TaskTrackerToken>,
        permits: Permits,
    ) -> GuardedRun {
        let Self { policy, cache_if, trace, execution, span, .. } = self;
        let trace = TraceParent::of_handler(&span, trace);
        let is_head = execution.head().is_some_and(|head| head.is_head);
        let in_flight = observe::InFlight::begin(policy.scope());
        registry.observe(policy.scope(), Event::Executed);
        GuardedRun {
            registry,
            classifier: ResponseClassifier { policy, fingerprint, cache_if, trace, is_head },
            span,
            guard: ActiveGuard::of(&execution, running),
            _permits: permits,
            _in_flight: in_flight,
        }
    }

    pub(super) fn registry_and_store(&self) -> Option<(Registry, StoreHandle)> {
        let registry = self.registry.clone()?;
        let store = registry.store_for(&self.policy)?.clone();
        Some((registry, store))
    }

    pub(super) fn reject_transaction(&self, store: &StoreHandle, error: &TransactionError) -> Response {
        telemetry::transaction_failed(&self.policy, store.name(), error);
        self.reject(error.rejection(UNAVAILABLE))
    }

    pub(super) fn reject(&self, rejection: Rejection) -> Response {
        // No layer around this guard may record a rejection.
        self.execution.take_over();
        self.report(Outcome::Rejected(rejection.outcome()), Event::Rejected(rejection.code()));
        Registry::render(self.registry.as_ref(), rejection, &self.execution.audience())
    }

    /// Reports the outcome of a request that does not execute the handler.
    pub(super) fn report(&self, outcome: Outcome, event: Event) {
        outcome.report(&self.span, &self.policy);
        if let Some(registry) = &self.registry {
            registry.observe(self.policy.scope(), event);
        }
    }
}
