//! What a claim takes: the request's identity, its fingerprint and its store; or the answer of a request that claims nothing.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::HeaderName;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Span;

use crate::caller_limit::{Caller, Permit};
use crate::fingerprint::Fingerprint;
use crate::fingerprint::builder::{FingerprintBuilder, PartDigest};
use crate::fingerprint::difference::Difference;
use crate::fingerprint::expression::Unserialisable;
use crate::key::{IdempotencyKey, RecordKey};
use crate::observe;
use crate::observe::event::Event;
use crate::observe::telemetry;
use crate::observe::telemetry::Outcome;
use crate::observe::traceparent::TraceParent;
use crate::policy::CacheIf;
use crate::policy::handle::PolicyHandle;
use crate::record::protection::Fingerprints;
use crate::registry::Registry;
use crate::rejection::problem::Rejection;
use crate::rejection::problem::{RETRY_AFTER, UNAVAILABLE};
use crate::request::context::Execution;
use crate::request::coverage::covering;
use crate::request::covered_run::CoveredRun;
use crate::request::holding::Holding;
use crate::request::input::{ClaimInput, InputBody};
use crate::request::passage::Passage;
use crate::request::response::ResponseClassifier;
use crate::request::response_mark::of_second_run;
use crate::request::settle_transaction::InTransaction;
use crate::store::claim::{ClaimRequest, Token};
use crate::store::handle::StoreHandle;
use crate::transaction::contract::HandlerTransaction;
use crate::transaction::error::TransactionError;

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

/// Whose request it is, and what `fingerprint = expr` says of it.
#[derive(Clone, Copy)]
pub(super) struct Identity<'a> {
    pub(super) caller: Option<&'a str>,
    pub(super) value: Option<Result<PartDigest, Unserialisable>>,
}

impl Identity<'_> {
    /// What the request asks for: target, body or the value in its place, and the credentials where no caller is named.
    pub(super) fn fingerprint(&self, claim_input: &ClaimInput, registry: &Registry) -> Fingerprint {
        let of_body = match claim_input.body {
            InputBody::Read(digest) => Some(digest),
            InputBody::NotRead | InputBody::Broken(_) => None,
        };
        let mut fingerprint = FingerprintBuilder::new();
        if let Some(target) = claim_input.target {
            fingerprint.target(target);
        }
        if let Some(body) = self.value.and_then(Result::ok).or(of_body) {
            fingerprint.body(body);
        }
        if self.caller.is_none() {
            fingerprint.credentials(registry.credential_headers(), &claim_input.credentials);
        }
        fingerprint.finish()
    }
}

/// A request with all that its claim takes.
pub(super) struct Claiming {
    pub(super) admission: Admission,
    pub(super) registry: Registry,
    pub(super) store: StoreHandle,
    pub(super) key: IdempotencyKey,
    pub(super) record_key: RecordKey,
    /// The record key as the store sees it: digested, if the registry says so.
    pub(super) stored_key: RecordKey,
    pub(super) request: ClaimRequest,
    pub(super) fingerprints: Fingerprints,
    /// A caller is named, so credentials are not part of the fingerprint.
    pub(super) is_partitioned: bool,
    /// Until it waits for another request.
    pub(super) running: Option<TaskTrackerToken>,
    pub(super) permit: Option<Permit>,
}

impl Claiming {
    /// The key belongs to another request, which has this fingerprint.
    pub(super) fn reject_other(&self, fingerprint: Fingerprint) -> Response {
        let difference = self.fingerprints.difference(fingerprint, self.credential_headers());
        telemetry::other_request(self.admission.policy.scope(), &difference);
        self.admission.reject(match difference {
            Difference::Credentials(_) => Rejection::OtherCredentials,
            Difference::Target | Difference::Body => Rejection::KeyReused,
        })
    }

    /// The headers that are part of the fingerprint.
    fn credential_headers(&self) -> &[HeaderName] {
        if self.is_partitioned { &[] } else { self.registry.credential_headers() }
    }
}

/// What a request with a key comes to before its store is asked.
#[expect(clippy::large_enum_variant, reason = "it is moved once, which costs less than a box")]
pub(super) enum Prepared {
    Claim(Claiming),
    /// Another claim for the same key would wait for that one.
    RunUnderAnothersClaim(CoveredRun),
    Answer(Response),
}

impl Admission {
    /// All that a claim takes, or what comes of the request without one.
    pub(super) fn prepare(
        self,
        claim_input: &ClaimInput,
        key: Result<IdempotencyKey, Rejection>,
        identity: Identity<'_>,
    ) -> Prepared {
        let Identity { caller, value } = identity;
        let key = match key {
            Ok(key) => key,
            Err(rejection) => return Prepared::Answer(self.reject(rejection)),
        };
        let record_key = self.execution.record_key(&self.policy, caller, &key);
        if let Some(covering) = covering(&self.execution, &record_key).cloned() {
            if self.transaction.is_some() {
                telemetry::covered_transaction(&self.policy);
                return Prepared::Answer(self.reject(Rejection::TransactionFailed));
            }
            if !self.execution.begin_first_run_under(&record_key) {
                return Prepared::Answer(self.reject_second_run(&covering));
            }
            self.execution.enter();
            let (execution, policy) = (Arc::clone(&self.execution), self.policy.clone());
            return match CoveredRun::begin(execution, Arc::clone(&covering), policy, self.cache_if) {
                Some(run) => Prepared::RunUnderAnothersClaim(run),
                None => Prepared::Answer(self.reject_beneath(&covering)),
            };
        }
        self.execution.take_over();
        let Some((registry, store)) = self.registry_and_store() else {
            telemetry::misconfigured(&self.policy, self.registry.is_some());
            return Prepared::Answer(self.reject(UNAVAILABLE));
        };
        if let Some(Err(error)) = value {
            telemetry::no_fingerprint(&self.policy, error);
            return Prepared::Answer(self.reject(Rejection::FingerprintFailed));
        }
        if let InputBody::Broken(broken) = &claim_input.body {
            let (status, reason) = &**broken;
            return Prepared::Answer((*status, reason.clone()).into_response());
        }
        let fingerprints = registry.at_rest().fingerprints(identity.fingerprint(claim_input, &registry));
        self.execution.ask_for(key.clone(), record_key.clone(), fingerprints.plain);
        let permit = match self.permit(&registry, caller, claim_input) {
            Ok(permit) => permit,
            Err(rejection) => return Prepared::Answer(self.reject(rejection)),
        };
        Prepared::Claim(Claiming {
            stored_key: registry.at_rest().key(&record_key),
            request: ClaimRequest {
                token: Token::unique(),
                fingerprint: fingerprints.first,
                lease: self.policy.lease(),
                ttl: ClaimRequest::remembered_for(self.policy.ttl(), self.policy.lease()),
                after_crash: self.policy.after_crash(),
            },
            // Counted from here on, so that a drain waits for a claim that is on its way.
            running: Some(registry.running().token()),
            admission: self,
            registry,
            store,
            key,
            record_key,
            fingerprints,
            is_partitioned: caller.is_some(),
            permit,
        })
    }

    /// Begins the transaction of a request without a key.
    pub(super) async fn begin(self) -> Result<Passage, Response> {
        let Some(transaction) = self.transaction.clone() else { return Ok(Passage::Unguarded { _holding: None }) };
        self.execution.enter();
        let Some((registry, store)) = self.registry_and_store() else {
            telemetry::misconfigured(&self.policy, self.registry.is_some());
            return Err(self.reject(UNAVAILABLE));
        };
        let running = registry.running().token();
        if let Err(error) = transaction.begin(&store, self.policy.isolation()).await {
            return Err(self.reject_transaction(&store, &error));
        }
        let fingerprint = FingerprintBuilder::new().finish();
        let in_flight = observe::InFlight::enter(self.policy.scope());
        registry.observe(self.policy.scope(), Event::Executed);
        let classifier = ResponseClassifier { policy: self.policy, fingerprint, cache_if: self.cache_if, trace: None };
        let span = self.span;
        Ok(Passage::InTransaction(Box::new(InTransaction {
            registry,
            store,
            transaction,
            claim: None,
            classifier,
            span,
            holding: Holding::of(&self.execution, Some(running)),
            _permit: None,
            _in_flight: in_flight,
        })))
    }

    /// A permit of the caller, if the registry limits the requests in flight of each caller.
    fn permit(
        &self,
        registry: &Registry,
        caller: Option<&str>,
        claim_input: &ClaimInput,
    ) -> Result<Option<Permit>, Rejection> {
        let Some(limit) = registry.caller_limit() else { return Ok(None) };
        let caller = Caller::of(caller, registry.credential_headers(), &claim_input.credentials);
        let permit = limit.enter(self.policy.owned_scope(), caller);
        permit.map(Some).ok_or(Rejection::TooManyInFlight { retry_after: RETRY_AFTER })
    }

    fn registry_and_store(&self) -> Option<(Registry, StoreHandle)> {
        let registry = self.registry.clone()?;
        let store = registry.store_for(&self.policy)?.clone();
        Some((registry, store))
    }

    pub(super) fn reject_transaction(&self, store: &StoreHandle, error: &TransactionError) -> Response {
        telemetry::transaction_failed(&self.policy, store.name(), error);
        self.reject(error.rejection(UNAVAILABLE))
    }

    /// Rejects a request that something beneath a guard sends a second time under one claim.
    fn reject_second_run(&self, covering: &Arc<Execution>) -> Response {
        telemetry::second_run(&self.policy);
        self.reject_beneath(covering)
    }

    /// Rejects a request that may not run under the claim of this guard, although it has the same key.
    fn reject_beneath(&self, covering: &Arc<Execution>) -> Response {
        of_second_run(self.reject(Rejection::InFlight { retry_after: RETRY_AFTER }), covering)
    }

    pub(super) fn reject(&self, rejection: Rejection) -> Response {
        // No layer around it may record a rejection.
        self.execution.take_over();
        self.report(Outcome::Rejected(rejection.outcome()), Event::Rejected(rejection.code()));
        match &self.registry {
            Some(registry) => registry.render(rejection),
            None => rejection.into_response(),
        }
    }

    /// Reports how a request ends that executes nothing.
    pub(super) fn report(&self, outcome: Outcome, event: Event) {
        outcome.enter(&self.span, &self.policy);
        if let Some(registry) = &self.registry {
            registry.observe(self.policy.scope(), event);
        }
    }
}
