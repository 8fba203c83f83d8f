//! Claims, replays or refuses, and records: what happens between a handler's extractors and its body.
//!
//! ```text
//! Gate (the request, the policy's expressions) ──enter──▶ refusal or replay
//!                                              └────────▶ Passage: the handler runs, and its response is settled
//! ```

mod claim;
mod content;
mod run;
mod settle;
mod transact;
mod verdict;
mod wait;

use std::fmt::Display;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::response;
use serde::Serialize;
use tracing::Instrument;

pub(crate) use self::claim::UNAVAILABLE;
use self::claim::{Asking, Entered, Identity};
pub(crate) use self::run::{Awaited, Lent};
use self::run::{Run, Stage};
pub(crate) use self::settle::CLAIM_LOST;
use self::settle::Claimed;
use self::transact::InTransaction;
pub(crate) use self::verdict::{failed, is_of_another_guard, its_own, of_another_guard};
pub(crate) use self::wait::Watches;
use crate::completion::Completion;
use crate::fingerprint::{PartDigest, Unserialisable, digest_of_value};
use crate::guarded::Guarded;
use crate::idempotency::Execution;
use crate::policy::{InvalidKeyPolicy, KeySource};
use crate::presented::{Asked, Presented};
use crate::{IdempotencyKey, InvalidKey, Policy, Refusal, Registry, telemetry};

/// The predicate of `cache_if`.
pub(crate) type CacheIf = fn(&response::Parts) -> bool;

/// Opens the gate to an annotated handler for one request: what the attribute's expansion calls.
pub fn open<B, M>(policy: &'static Policy, guarded: Guarded<B, M>) -> (Gate, B) {
    (Gate::new(policy, guarded.request), guarded.inner)
}

/// Where a request stands before its handler.
pub struct Gate {
    policy: &'static Policy,
    /// A direct call is not, and neither is a method that the policy leaves alone.
    is_guarded: bool,
    asked: Asked,
    key: Option<Result<IdempotencyKey, Refusal>>,
    caller: Option<String>,
    /// Of `fingerprint = expr`.
    value: Option<Result<PartDigest, Unserialisable>>,
    cache_if: Option<CacheIf>,
    execution: Option<Arc<Execution>>,
    registry: Option<Registry>,
}

impl Gate {
    pub(crate) fn new(policy: &'static Policy, presented: Option<Presented>) -> Self {
        let mut gate = Self {
            policy,
            is_guarded: false,
            asked: Asked::default(),
            key: None,
            caller: None,
            value: None,
            cache_if: policy.predicate,
            execution: None,
            registry: None,
        };
        let Some(presented) = presented else { return gate };
        gate.registry = presented.registry;
        gate.execution = presented.execution;
        if policy.guards(&presented.method) {
            gate.is_guarded = true;
            gate.asked = presented.asked;
            gate.caller = gate.asked.caller.take();
            if policy.key == KeySource::Header {
                let header = presented.key.is_in_header().then_some(policy.header);
                gate.key = judge(policy, header, presented.key.in_header(policy.header));
            }
        }
        gate
    }

    /// Takes the key of `key = expr`; before the other expressions, which only count for a keyed request.
    pub fn key<K: KeyExpression + ?Sized>(&mut self, key: &K) {
        if self.is_guarded {
            self.key = judge(self.policy, None, key.key().map(IdempotencyKey::new));
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

    /// Lets the handler through or answers in its place, and settles what it comes to: its response is recorded before it is
    /// sent.
    pub fn run<F>(self, handler: F, into_response: fn(F::Output) -> Response) -> Completion
    where
        F: Future + Send + 'static,
    {
        let execution = self.execution.clone();
        Completion::new(Box::pin(Run { handler, into_response, stage: Stage::Entering(self) }), execution)
    }

    /// Gives the gate to the handler's future, where alone the policy's expressions find the handler's variables.
    pub fn lend(self) -> (Lent, Awaited) {
        run::lend(self)
    }

    /// Claims the request's key.
    fn enter(self) -> Entered {
        #[cfg(feature = "testing")]
        {
            let mut gate = self;
            let witness = gate.witness();
            gate.enter_now().witnessed(witness)
        }
        #[cfg(not(feature = "testing"))]
        self.enter_now()
    }

    /// Who counts the execution. Under a registry that is disabled, a request with a key becomes one without.
    #[cfg(feature = "testing")]
    fn witness(&mut self) -> Option<(Registry, &'static str)> {
        let (registry, scope) = (self.registry.clone()?, self.policy.scope);
        let Some((Ok(key), execution)) = self.key.as_ref().zip(self.execution.as_ref()) else {
            return Some((registry, scope));
        };
        let record_key = crate::RecordKey::new(scope, self.caller.as_deref(), key.as_str());
        if execution.is_covered(&record_key) {
            // The guard around it has told of it.
            return None;
        }
        if registry.is_disabled() {
            let fingerprint = self.identity().fingerprint(&self.asked, &registry);
            execution.grant(key.clone(), record_key, fingerprint, 1);
            self.key = None;
        }
        Some((registry, scope))
    }

    fn enter_now(mut self) -> Entered {
        let transaction = self.execution.as_ref().and_then(|execution| execution.transaction());
        if self.key.is_none() && transaction.is_none() {
            if let Some(execution) = &self.execution {
                execution.enter();
            }
            return Entered::Now(Ok(Passage::Unguarded));
        }
        let span = telemetry::span(self.policy);
        if let Some(execution) = &self.execution {
            execution.fate.set_span(&span);
        }
        let asking = Asking {
            policy: self.policy,
            registry: self.registry.take(),
            span: span.clone(),
            cache_if: self.cache_if,
            trace: self.asked.trace.take(),
            // Without one there is no key to claim, only a refusal to give.
            execution: self.execution.take().unwrap_or_default(),
            transaction,
        };
        match self.key.take() {
            Some(key) => span.in_scope(|| asking.enter(&self.asked, key, self.identity())),
            None => Entered::Later(Box::pin(asking.begin().instrument(span))),
        }
    }

    /// Whether the request has a key, or is refused for its key's sake.
    pub(crate) fn is_asked(&self) -> bool {
        self.key.is_some()
    }

    fn identity(&self) -> Identity<'_> {
        Identity { caller: self.caller.as_deref(), value: self.value }
    }

    fn is_keyed(&self) -> bool {
        matches!(self.key, Some(Ok(_)))
    }
}

/// What the policy makes of the key; `None` lets the request pass unguarded. `header` is where a client puts it, if it does.
fn judge(
    policy: &Policy,
    header: Option<&'static str>,
    key: Option<Result<IdempotencyKey, InvalidKey>>,
) -> Option<Result<IdempotencyKey, Refusal>> {
    match key {
        Some(Ok(key)) => Some(Ok(key)),
        Some(Err(reason)) if policy.invalid_key == InvalidKeyPolicy::Reject => {
            Some(Err(Refusal::InvalidKey { reason }))
        }
        _ if policy.required => Some(Err(Refusal::MissingKey { header })),
        _ => None,
    }
}

/// The right to run the handler.
#[allow(clippy::large_enum_variant, reason = "it is moved twice, which costs less than a box")]
enum Passage {
    Unguarded,
    Claimed(Claimed),
    InTransaction(Box<InTransaction>),
}

/// Turns what the handler returned into a response; a name of its own, so that an error can point at the return type.
pub fn into_response<R: IntoResponse>(value: R) -> Response {
    // Where the handler has forwarded the request, another guard may have answered; this one answers for its own handler.
    its_own(value.into_response())
}

/// What an annotated handler would return where it never gets to.
pub fn never<T>() -> T {
    unreachable!("it stands behind a condition that is never true")
}

/// What `key = expr` may be: text, or an `Option` of text.
#[diagnostic::on_unimplemented(
    message = "`key` must be a string or an `Option` of one, but this is `{Self}`",
    label = "neither `&str`, `String` nor an `Option` of either",
    note = "write `key = order.client_token` for a `String`, or `key = order.client_token.to_string()` for what displays itself"
)]
pub trait KeyExpression {
    /// The key, if there is one.
    fn key(&self) -> Option<&str>;
}

impl KeyExpression for str {
    fn key(&self) -> Option<&str> {
        Some(self)
    }
}

impl KeyExpression for String {
    fn key(&self) -> Option<&str> {
        Some(self)
    }
}

impl KeyExpression for std::borrow::Cow<'_, str> {
    fn key(&self) -> Option<&str> {
        Some(self)
    }
}

impl KeyExpression for IdempotencyKey {
    fn key(&self) -> Option<&str> {
        Some(self.as_str())
    }
}

impl<K: KeyExpression> KeyExpression for Option<K> {
    fn key(&self) -> Option<&str> {
        self.as_ref().and_then(KeyExpression::key)
    }
}

impl<K: KeyExpression + ?Sized> KeyExpression for &K {
    fn key(&self) -> Option<&str> {
        (**self).key()
    }
}
