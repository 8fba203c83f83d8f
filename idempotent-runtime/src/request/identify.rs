//! Takes from a request the values that its policy names: the key, the caller, and the value that replaces the body.
//! Without a key, the handler runs unguarded. With a key, the request continues in [`fingerprint`](super::fingerprint).

use std::any::TypeId;
use std::mem;
use std::sync::Arc;

use axum::response::Response;
use http::response;
use serde::Serialize;

use crate::fingerprint::expression::digest_of_value;
use crate::idempotency_key::{IdempotencyKey, InvalidKey};
use crate::observe::event::Event;
use crate::observe::telemetry;
use crate::policy::handle::PolicyHandle;
use crate::policy::values::{InvalidKeyPolicy, KeySource, Reads};
use crate::policy::{CacheIf, Policy};
use crate::registry::Registry;
use crate::rejection::problem::Rejection;
use crate::rejection::request::Audience;
use crate::request::admission::Admission;
use crate::request::claim_input::{BODY_NOT_PERMITTED, BodyReading, ClaimInput, InputBody};
use crate::request::context::Execution;
use crate::request::identity::{IdentifiedRequest, Identity};
use crate::request::input::RequestInput;
use crate::request::key_expression::KeyExpression;
use crate::request::upload::Unread;

/// A request before its handler.
#[expect(missing_debug_implementations, reason = "only the expansion of the attribute holds it")]
pub struct Gate {
    policy: PolicyHandle,
    /// False for a direct call, and for a method that the policy does not guard.
    is_guarded: bool,
    claim_input: ClaimInput,
    key: Option<Result<IdempotencyKey, Rejection>>,
    identity: Identity,
    cache_if: Option<CacheIf>,
    pub(super) execution: Option<Arc<Execution>>,
    registry: Option<Registry>,
    audience: Audience,
}

impl Gate {
    pub(crate) fn new(policy: PolicyHandle, input: Option<RequestInput>) -> Self {
        let mut gate = Self {
            cache_if: policy.predicate(),
            policy,
            is_guarded: false,
            claim_input: ClaimInput::default(),
            key: None,
            identity: Identity::default(),
            execution: None,
            registry: None,
            audience: Audience::default(),
        };
        let Some(input) = input else { return gate };
        if let Some(registry) = &input.registry {
            gate.policy = registry.overrides().in_use(gate.policy);
        }
        gate.registry = input.registry;
        gate.execution = input.execution;
        gate.audience = input.audience;
        let policy = &gate.policy;
        if policy.guards(&input.method) {
            gate.is_guarded = true;
            if policy.key() == KeySource::Header {
                let header = input.key.is_in_header().then_some(policy.header());
                if let (Some(_), Some(execution)) = (header, &gate.execution) {
                    execution.set_key_in_header();
                }
                gate.key = check_key(policy, header, input.key.into_key());
            }
            gate.set_claim_input(input.claim_input);
        }
        gate
    }

    /// Takes the content of the request, when its body has been read.
    pub(crate) fn set_claim_input(&mut self, mut claim_input: ClaimInput) {
        self.identity.caller = claim_input.caller.take();
        if self.may_claim() && matches!(claim_input.body, InputBody::NotPermitted) {
            // Neither an expression nor an extractor may wait for the body now.
            self.key = Some(Err(BODY_NOT_PERMITTED));
        }
        self.claim_input = claim_input;
    }

    /// Returns whether the request has a key, or the expression of the policy may still name one.
    fn may_claim(&self) -> bool {
        match &self.key {
            Some(key) => key.is_ok(),
            None => self.is_guarded && self.policy.key() == KeySource::Expression,
        }
    }

    /// Begins to read the body of a request, if it was not read before. Returns `None` if the handler runs unguarded, or
    /// if the request is rejected because it has no key: then the body is left alone.
    pub(crate) fn begin_to_read(&mut self) -> Option<BodyReading> {
        let reads = match &self.key {
            Some(Err(Rejection::MissingKey { .. })) => return None,
            // The client may have to send its body before it reads the answer.
            Some(Err(_)) => Reads::Nothing,
            _ if self.may_claim() => self.policy.fingerprint().reads(),
            _ => return None,
        };
        let caller = self.identity.caller.take();
        let claim_input = ClaimInput { caller, ..mem::take(&mut self.claim_input) };
        Some(BodyReading { claim_input, reads, registry: self.registry.clone() })
    }

    /// Takes the key of `key = expr`. The key comes before the other expressions, because these matter only for a
    /// request with a key.
    pub fn key<K: KeyExpression + ?Sized>(&mut self, key: &K) {
        if self.is_guarded {
            self.key = check_key(&self.policy, None, key.key().map(IdempotencyKey::new));
        }
    }

    /// Takes the caller of `caller = expr`. If the expression names one, it replaces the registry's.
    pub(super) fn set_caller(&mut self, caller: impl FnOnce() -> Option<String>) {
        if self.is_keyed()
            && let Some(caller) = caller()
        {
            self.identity.caller = Some(caller);
        }
    }

    /// Takes the value of `fingerprint = expr`.
    pub fn fingerprint<V: Serialize + ?Sized>(&mut self, value: &V) {
        if self.is_keyed() {
            self.identity.value = Some(digest_of_value(value));
        }
    }

    /// Takes the predicate of `cache_if = path`.
    pub fn cache_if(&mut self, predicate: fn(&response::Parts) -> bool) {
        self.cache_if = Some(predicate);
    }

    /// Returns whether the request has a key, or is already rejected.
    pub(crate) fn has_key_or_rejection(&self) -> bool {
        self.key.is_some()
    }

    /// Returns whether the request is rejected because it has no key.
    pub(crate) fn is_rejected_without_key(&self) -> bool {
        matches!(self.key, Some(Err(Rejection::MissingKey { .. })))
    }

    /// Removes the key if the registry is disabled: the request then runs without a key, and only its extractors see
    /// the key.
    fn drop_key_if_disabled(&mut self) {
        let Some(registry) = self.registry.as_ref().filter(|registry| registry.is_disabled()) else { return };
        let (Some(Ok(key)), Some(execution)) = (&self.key, &self.execution) else { return };
        let record_key = execution.record_key(&self.policy, self.identity.caller.as_deref(), key);
        let digest = self.identity.digest(&self.claim_input, registry);
        execution.grant_without_claim(key.clone(), record_key, registry.at_rest().downstream(&digest));
        self.key = None;
    }

    /// Returns whether the request is already rejected: because of its key, because it has no key, or because of its
    /// body.
    pub(super) fn is_rejected(&self) -> bool {
        matches!(self.key, Some(Err(_)))
    }

    /// Returns the content of the request.
    pub(super) fn claim_input(&self) -> &ClaimInput {
        &self.claim_input
    }

    /// Takes the body that the client may still be sending when the request is answered without the handler.
    pub(super) fn unread(&mut self) -> Option<Unread> {
        let upload = self.claim_input.upload.take()?;
        Some(Unread::new(upload, self.execution.clone()))
    }

    /// Returns the data of the request for the next stage. `handler` is the type of the handler.
    pub(super) fn identify(mut self, handler: TypeId) -> Identified {
        self.drop_key_if_disabled();
        let end_extraction = |execution: &Arc<Execution>| {
            execution.end_extraction_before_claim(&self.policy, handler, self.audience.clone())
        };
        let has_one_transaction = self.execution.as_ref().is_none_or(end_extraction);
        let transaction = self.execution.as_ref().and_then(|execution| execution.transaction().cloned());
        if self.key.is_none() && transaction.is_none() {
            if let Some(execution) = &self.execution {
                execution.begin();
            }
            if let Some(registry) = &self.registry {
                registry.observe(self.policy.scope(), Event::Executed);
            }
            return Identified::Unguarded;
        }
        let span = telemetry::span(&self.policy);
        if let Some(execution) = &self.execution {
            execution.run.detach_state.set_span(&span);
        }
        // Without an execution there is no key to claim, only a rejection to send.
        let execution = self.execution.take().unwrap_or_else(|| {
            let execution = Arc::default();
            end_extraction(&execution);
            execution
        });
        let admission = Admission {
            policy: self.policy,
            registry: self.registry,
            span,
            cache_if: self.cache_if,
            trace: self.claim_input.trace.take(),
            execution,
            transaction,
        };
        if !has_one_transaction {
            telemetry::second_transaction(&admission.policy);
            return Identified::Answered(admission.reject(Rejection::TransactionFailed));
        }
        match self.key {
            Some(Ok(key)) => {
                let (identity, claim_input) = (self.identity, self.claim_input);
                Identified::WithKey(IdentifiedRequest { admission, key, identity, claim_input })
            }
            Some(Err(rejection)) => {
                let span = admission.span.clone();
                Identified::Answered(span.in_scope(|| admission.reject(rejection)))
            }
            None => Identified::WithoutKey(admission),
        }
    }

    fn is_keyed(&self) -> bool {
        matches!(self.key, Some(Ok(_)))
    }
}

/// The result of the policy's expressions.
#[expect(clippy::large_enum_variant, reason = "it is moved once, which costs less than a box")]
pub(super) enum Identified {
    /// The request has no key, so the handler runs like any other.
    Unguarded,
    /// The request has no key, but the handler takes a `Tx`.
    WithoutKey(Admission),
    WithKey(IdentifiedRequest),
    Answered(Response),
}

/// Applies the policy to the key. Returns `None` if the request runs unguarded. `header` is the header in which clients
/// send the key, if they send it in a header.
fn check_key(
    policy: &Policy,
    header: Option<&str>,
    key: Option<Result<IdempotencyKey, InvalidKey>>,
) -> Option<Result<IdempotencyKey, Rejection>> {
    let (min_length, format) = (policy.min_key_length(), policy.key_format());
    match key.map(|key| key.and_then(|key| key.check(min_length, format).map(|()| key))) {
        Some(Ok(key)) => Some(Ok(key)),
        Some(Err(reason)) if policy.invalid_key() == InvalidKeyPolicy::Reject => {
            Some(Err(Rejection::InvalidKey { reason, min_length, format }))
        }
        _ if policy.required() => Some(Err(Rejection::MissingKey { header: header.map(str::to_owned) })),
        _ => None,
    }
}
