//! Claims, replays or rejects, and records: what happens between a handler's extractors and its body.
//!
//! ```text
//! Gate (the request, the policy's expressions) ──enter──▶ rejection or replay
//!                                              └────────▶ Passage: the handler runs, and its response is settled
//! ```

use std::fmt::Display;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::response;
use serde::Serialize;

use crate::fingerprint::builder::PartDigest;
use crate::fingerprint::expression::{Unserialisable, digest_of_value};
use crate::key::{IdempotencyKey, InvalidKey};
use crate::policy::handle::PolicyHandle;
use crate::policy::values::{InvalidKeyPolicy, KeySource};
use crate::policy::{CacheIf, Policy};
use crate::registry::Registry;
use crate::rejection::problem::Rejection;
use crate::request::admission::Identity;
use crate::request::context::Execution;
use crate::request::extract::Guarded;
use crate::request::input::{ClaimInput, RequestInput};
use crate::request::key_expression::KeyExpression;
use crate::request::response_mark::without_mark;

/// Opens the gate to an annotated handler for one request: what the attribute's expansion calls.
pub fn open<B, M>(policy: &'static Policy, guarded: Guarded<B, M>) -> (Gate, B) {
    (Gate::new(PolicyHandle::Handler(policy), guarded.request), guarded.inner)
}

/// A request before its handler.
#[expect(missing_debug_implementations, reason = "only the expansion of the attribute holds it")]
pub struct Gate {
    pub(super) policy: PolicyHandle,
    /// False for a direct call, and for a method that the policy does not guard.
    pub(super) is_guarded: bool,
    pub(super) claim_input: ClaimInput,
    pub(super) key: Option<Result<IdempotencyKey, Rejection>>,
    pub(super) caller: Option<String>,
    /// The value of `fingerprint = expr`.
    pub(super) value: Option<Result<PartDigest, Unserialisable>>,
    pub(super) cache_if: Option<CacheIf>,
    pub(super) execution: Option<Arc<Execution>>,
    pub(super) registry: Option<Registry>,
}

impl Gate {
    pub(crate) fn new(policy: PolicyHandle, input: Option<RequestInput>) -> Self {
        let mut gate = Self {
            cache_if: policy.predicate(),
            policy,
            is_guarded: false,
            claim_input: ClaimInput::default(),
            key: None,
            caller: None,
            value: None,
            execution: None,
            registry: None,
        };
        let Some(input) = input else { return gate };
        let policy = &gate.policy;
        gate.registry = input.registry;
        gate.execution = input.execution;
        if policy.guards(&input.method) {
            gate.is_guarded = true;
            gate.claim_input = input.claim_input;
            gate.caller = gate.claim_input.caller.take();
            if policy.key() == KeySource::Header {
                let header = input.key.is_in_header().then_some(policy.header());
                if let (Some(_), Some(execution)) = (header, &gate.execution) {
                    execution.set_key_in_header();
                }
                gate.key = check_key(policy, header, input.key.in_header(policy.header()));
            }
        }
        gate
    }

    /// Takes the key of `key = expr`; before the other expressions, which only count for a keyed request.
    pub fn key<K: KeyExpression + ?Sized>(&mut self, key: &K) {
        if self.is_guarded {
            self.key = check_key(&self.policy, None, key.key().map(IdempotencyKey::new));
        }
    }

    /// Takes the caller of `caller = expr`, in place of the registry's.
    pub fn caller<C: Display + ?Sized>(&mut self, caller: &C) {
        if self.is_keyed() {
            self.caller = Some(caller.to_string());
        }
    }

    /// Takes the value of `fingerprint = expr`.
    pub fn fingerprint<V: Serialize + ?Sized>(&mut self, value: &V) {
        if self.is_keyed() {
            self.value = Some(digest_of_value(value));
        }
    }

    /// Takes the predicate of `cache_if = path`.
    pub fn cache_if(&mut self, predicate: fn(&response::Parts) -> bool) {
        self.cache_if = Some(predicate);
    }

    /// Whether the request has a key, or is rejected because of its key.
    pub(crate) fn has_key_or_rejection(&self) -> bool {
        self.key.is_some()
    }

    pub(super) fn identity(&self) -> Identity<'_> {
        Identity { caller: self.caller.as_deref(), value: self.value }
    }

    /// Under a registry that is disabled, a request runs as one without a key; only its extractors see the key.
    pub(super) fn drop_key_if_disabled(&mut self) {
        let Some(registry) = self.registry.as_ref().filter(|registry| registry.is_disabled()) else { return };
        let (Some(Ok(key)), Some(execution)) = (&self.key, &self.execution) else { return };
        let record_key = execution.record_key(&self.policy, self.caller.as_deref(), key);
        let fingerprint = self.identity().fingerprint(&self.claim_input, registry);
        execution.grant_without_claim(key.clone(), record_key, fingerprint);
        self.key = None;
    }

    fn is_keyed(&self) -> bool {
        matches!(self.key, Some(Ok(_)))
    }
}

/// What the policy makes of the key; `None` lets the request pass unguarded. `header` is where a client puts it, if it does.
fn check_key(
    policy: &Policy,
    header: Option<&str>,
    key: Option<Result<IdempotencyKey, InvalidKey>>,
) -> Option<Result<IdempotencyKey, Rejection>> {
    match key {
        Some(Ok(key)) => Some(Ok(key)),
        Some(Err(reason)) if policy.invalid_key() == InvalidKeyPolicy::Reject => {
            Some(Err(Rejection::InvalidKey { reason }))
        }
        _ if policy.required() => Some(Err(Rejection::MissingKey { header: header.map(str::to_owned) })),
        _ => None,
    }
}

/// Turns what the handler returned into a response; a name of its own, so that an error can point at the return type.
pub fn into_response<R: IntoResponse>(value: R) -> Response {
    // If the handler forwarded the request, another guard may have marked the response; this guard answers for its own handler.
    without_mark(value.into_response())
}

/// What an annotated handler would return where it never gets to.
pub fn never<T>() -> T {
    unreachable!("its call is behind a condition that is never true")
}
