//! Computes the fingerprint of a request and collects the arguments of its claim, or answers the request.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};

use crate::caller_limit::Caller;
use crate::key::RecordKey;
use crate::observe::telemetry;
use crate::policy::handle::PolicyHandle;
use crate::registry::Registry;
use crate::rejection::mark::marked;
use crate::rejection::problem::{IN_FLIGHT, RETRY_AFTER, Rejection, UNAVAILABLE};
use crate::request::admission::Admission;
use crate::request::claim_input::{ClaimInput, InputBody};
use crate::request::context::Execution;
use crate::request::coverage::covering;
use crate::request::covered_run::CoveredRun;
use crate::request::guarded_run::Permits;
use crate::request::identity::IdentifiedRequest;
use crate::request::keyed_request::KeyedRequest;
use crate::request::response_mark::of_second_run;
use crate::store::claim::{ClaimRequest, Token};

/// The result of this stage.
#[expect(clippy::large_enum_variant, reason = "it is moved once, which costs less than a box")]
pub(super) enum Prepared {
    Claim(KeyedRequest),
    /// The handler runs under the claim of a guard around it. A second claim for the same key would wait for the end of
    /// that claim.
    RunUnderAnothersClaim(CoveredRun),
    Answer(Response),
}

/// Returns the arguments of the claim, a run under the claim of a guard around the request, or the answer.
pub(super) fn prepare(request: IdentifiedRequest) -> Prepared {
    let IdentifiedRequest { admission, key, identity, claim_input } = request;
    let caller = identity.caller.as_deref();
    let record_key = admission.execution.record_key(&admission.policy, caller, &key);
    if let Some(covering) = covering(&admission.execution, &record_key).cloned() {
        return under_anothers_claim(&admission, &record_key, &covering);
    }
    admission.execution.take_over();
    let Some((registry, store)) = admission.registry_and_store() else {
        telemetry::misconfigured(&admission.policy, admission.registry.is_some());
        return Prepared::Answer(admission.reject(UNAVAILABLE));
    };
    if let Some(Err(error)) = identity.value {
        telemetry::no_fingerprint(&admission.policy, error);
        return Prepared::Answer(admission.reject(Rejection::FingerprintFailed));
    }
    if let InputBody::Broken(broken) = &claim_input.body {
        let (status, reason) = &**broken;
        return Prepared::Answer(marked((*status, reason.clone()).into_response()));
    }
    let at_rest = registry.at_rest();
    let digest = identity.digest(&claim_input, &registry);
    let owner = at_rest.owner(caller, &digest);
    let fingerprints = at_rest.fingerprints(&record_key, digest);
    let downstream = at_rest.downstream(fingerprints.request());
    let stored_key = at_rest.key(&record_key);
    let (permits, beyond_limit) = permits(&admission.policy, &registry, caller, &claim_input, &record_key);
    admission.execution.ask_for(key, record_key, downstream);
    Prepared::Claim(KeyedRequest {
        stored_key,
        request: ClaimRequest {
            token: Token::unique(),
            fingerprint: fingerprints.first,
            former_fingerprint: None,
            lease: admission.policy.lease(),
            ttl: ClaimRequest::remembered_for(admission.policy.ttl(), admission.policy.lease()),
            after_crash: admission.policy.after_crash(),
            owner: Some(owner),
            is_of_running: false,
        },
        // The request counts as running from here on, so that a drain waits for a claim that is on its way.
        running: Some(registry.running().token()),
        admission,
        registry,
        store,
        fingerprints,
        is_partitioned: caller.is_some(),
        permits,
        beyond_limit,
    })
}

/// Begins the run of a request whose key is held by a guard around it, or rejects the request.
fn under_anothers_claim(admission: &Admission, record_key: &RecordKey, covering: &Arc<Execution>) -> Prepared {
    if admission.transaction.is_some() {
        telemetry::covered_transaction(&admission.policy);
        return Prepared::Answer(admission.reject(Rejection::TransactionFailed));
    }
    if !admission.execution.begin_first_run_under(record_key) {
        return Prepared::Answer(reject_second_run(admission, covering));
    }
    admission.execution.begin();
    let (execution, policy) = (Arc::clone(&admission.execution), admission.policy.clone());
    match CoveredRun::begin(execution, Arc::clone(covering), policy, admission.cache_if) {
        Some(run) => Prepared::RunUnderAnothersClaim(run),
        None => Prepared::Answer(reject_beneath(admission, covering)),
    }
}

/// Rejects a request that arrives a second time beneath a guard under one claim.
fn reject_second_run(admission: &Admission, covering: &Arc<Execution>) -> Response {
    telemetry::second_run(&admission.policy);
    reject_beneath(admission, covering)
}

/// Rejects a request that may not run under the claim of this guard, although it has the same key.
fn reject_beneath(admission: &Admission, covering: &Arc<Execution>) -> Response {
    of_second_run(admission.reject(IN_FLIGHT), covering)
}

/// Returns the permits of an execution, and the rejection if the execution cannot get all of them.
fn permits(
    policy: &PolicyHandle,
    registry: &Registry,
    caller: Option<&str>,
    claim_input: &ClaimInput,
    key: &RecordKey,
) -> (Permits, Option<Rejection>) {
    let reject = |of_caller| Some(Rejection::TooManyInFlight { retry_after: RETRY_AFTER, of_caller });
    let mut permits = Permits::default();
    if let Some(limit) = registry.caller_limit() {
        let caller = Caller::of(caller, registry.credential_headers(), &claim_input.credentials);
        permits.caller = limit.acquire(policy.owned_scope(), caller, key);
        if permits.caller.is_none() {
            return (permits, reject(true));
        }
    }
    permits.running = registry.running_limit().acquire(policy.owned_scope());
    let beyond_limit = if permits.running.is_none() { reject(false) } else { None };
    (permits, beyond_limit)
}
