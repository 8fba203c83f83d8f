//! The result of a claim: the handler may run under the claim, in its transaction or unguarded, or a response replaces
//! it.

use std::sync::Arc;

use axum::response::Response;
use futures_util::future::BoxFuture;

use crate::fingerprint::Fingerprint;
use crate::lease::state::Lease;
use crate::observe::event::Event;
use crate::observe::telemetry;
use crate::observe::telemetry::Outcome;
use crate::rejection::problem::{RETRY_AFTER, Rejection, UNAVAILABLE};
use crate::request::active_guard::ActiveGuard;
use crate::request::admission::Admission;
use crate::request::covered_run::CoveredRun;
use crate::request::guarded_run::Permits;
use crate::request::keyed_request::KeyedRequest;
use crate::request::settle::Claimed;
use crate::request::settle_transaction::{InTransaction, RecordedClaim};
use crate::step::names::Owners;
use crate::step::steps::Steps;
use crate::store::claim::ClaimRequest;
use crate::sync::tokio::time::Instant;
use crate::transaction::contract::HandlerTransaction;

/// How the handler runs.
#[allow(clippy::large_enum_variant, reason = "it is moved twice, which costs less than a box")]
pub(super) enum HandlerRun {
    /// Requests that the handler forwards count as unguarded while this handler runs.
    Unguarded {
        _guard: Option<ActiveGuard>,
    },
    /// The handler runs under the claim of a guard around this one.
    Covered(CoveredRun),
    Claimed(Claimed),
    InTransaction(Box<InTransaction>),
}

/// The result of a claim: a handler that may run, or the response in its place.
#[allow(
    clippy::large_enum_variant,
    reason = "it is moved once, which costs less than a box; how large it is depends on features"
)]
pub(super) enum ClaimOutcome {
    Now(Result<HandlerRun, Response>),
    Later(BoxFuture<'static, Result<HandlerRun, Response>>),
}

impl Admission {
    /// Begins the transaction of a request without a key.
    pub(super) async fn begin_transaction(self) -> Result<HandlerRun, Response> {
        let Some(transaction) = self.transaction.clone() else { return Ok(HandlerRun::Unguarded { _guard: None }) };
        self.execution.begin();
        let Some((registry, store)) = self.registry_and_store() else {
            telemetry::misconfigured(&self.policy, self.registry.is_some());
            return Err(self.reject(UNAVAILABLE));
        };
        let Some(permit) = registry.running_limit().acquire(self.policy.owned_scope()) else {
            return Err(self.reject(Rejection::TooManyInFlight { retry_after: RETRY_AFTER, of_caller: false }));
        };
        let permits = Permits { running: Some(permit), caller: None };
        let running = registry.running().token();
        if let Err(error) = transaction.begin(&store, self.policy.isolation()).await {
            return Err(self.reject_transaction(&store, &error));
        }
        // Nothing is recorded without a key.
        let run = self.into_run(registry, Fingerprint::from_bytes([0; 32]), Some(running), permits);
        Ok(HandlerRun::InTransaction(Box::new(InTransaction { store, transaction, claim: None, run })))
    }
}

impl KeyedRequest {
    pub(super) fn run_under_claim(self, attempt: u32, asked_at: Instant) -> HandlerRun {
        // The record gets the fingerprint of the newest secret, even if the claim that was taken over has the
        // fingerprint of an older one: the record may outlive the last record of that secret.
        let first = self.fingerprints.first;
        let run = self.admission.into_run(self.registry, first, self.running, self.permits);
        let (policy, execution) = (&run.classifier.policy, run.guard.execution());
        execution.set_attempt(attempt);
        let lease = Lease::new(self.store, self.stored_key, &self.request, policy.owned_scope(), asked_at);
        let lease = run.registry.renewer().keep(lease);
        execution.open_steps(Steps {
            registry: run.registry.clone(),
            handler: lease.share(),
            ttl: policy.ttl(),
            max_result: policy.max_body(),
            fingerprints: self.fingerprints,
            is_partitioned: self.is_partitioned,
            owners: Owners::default(),
        });
        HandlerRun::Claimed(Claimed { lease, attempt, run })
    }

    pub(super) fn run_in_transaction(self, attempt: u32, transaction: Arc<dyn HandlerTransaction>) -> HandlerRun {
        let run = self.admission.into_run(self.registry, self.fingerprints.first, self.running, self.permits);
        run.guard.execution().set_attempt(attempt);
        // No claim exists that could outlive a lease, so the record is kept for the policy's ttl.
        let request = ClaimRequest { ttl: run.classifier.policy.ttl(), ..self.request };
        let claim = Some(RecordedClaim { key: self.stored_key, request });
        HandlerRun::InTransaction(Box::new(InTransaction { store: self.store, transaction, claim, run }))
    }

    pub(super) fn run_unguarded(self) -> HandlerRun {
        // From here on the request is treated like any axum request: it ends when its client disconnects.
        self.admission.execution.run.detach_state.set_must_finish(false);
        self.admission.execution.set_attempt(1);
        let guard = ActiveGuard::of(&self.admission.execution, None);
        self.admission.report(Outcome::Unguarded, Event::Executed);
        HandlerRun::Unguarded { _guard: Some(guard) }
    }
}
