//! Claims, replays or refuses, and records: what happens between a handler's extractors and its body.
//!
//! ```text
//! Gate (the request, the policy's expressions) ──enter──▶ refusal or replay
//!                                              └────────▶ Passage ──execute──▶ the handler's response, settled
//! ```

mod claim;
mod content;
mod settle;
mod transact;
mod verdict;

use std::fmt::Display;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::response;
use tracing::Instrument;

use self::claim::Asking;
use self::settle::Claimed;
use self::transact::InTransaction;
use crate::completion::{Completion, Fate};
use crate::fingerprint::FingerprintBuilder;
use crate::guarded::{Guarded, Presented};
use crate::policy::{InvalidKeyPolicy, KeySource};
use crate::transaction::HandlerTransaction;
use crate::{IdempotencyKey, InvalidKey, Policy, Refusal, Registry, telemetry};

/// The predicate of `cache_if`.
pub(crate) type CacheIf = fn(&response::Parts) -> bool;

/// Runs one request of an annotated handler: what the attribute's expansion calls.
pub fn run<B, M, F>(policy: &'static Policy, guarded: Guarded<B, M>, handler: F) -> Completion
where
    F: FnOnce(Gate, B) -> BoxFuture<'static, Response>,
{
    let (inner, presented) = guarded.into_parts();
    let fate = Arc::<Fate>::default();
    Completion::new(handler(Gate::new(policy, presented, Arc::clone(&fate)), inner), fate)
}

/// Where a request stands before its handler.
pub struct Gate {
    policy: &'static Policy,
    presented: Option<Presented>,
    key: Option<Result<IdempotencyKey, Refusal>>,
    caller: Option<String>,
    fingerprint: FingerprintBuilder,
    cache_if: Option<CacheIf>,
    fate: Arc<Fate>,
    transaction: Option<Arc<dyn HandlerTransaction>>,
    registry: Option<Registry>,
}

impl Gate {
    fn new(policy: &'static Policy, presented: Option<Presented>, fate: Arc<Fate>) -> Self {
        let transaction = presented.as_ref().and_then(|presented| presented.execution.transaction());
        let registry = presented.as_ref().and_then(|presented| presented.registry.clone());
        // A direct call has no request, and a method that is not guarded needs no key.
        let presented = presented.filter(|presented| policy.guards(&presented.method));
        let key = match (&presented, policy.key) {
            (Some(presented), KeySource::Header) => judge(policy, from_headers(policy, presented)),
            _ => None,
        };
        Self {
            policy,
            presented,
            key,
            caller: None,
            fingerprint: FingerprintBuilder::new(),
            cache_if: None,
            fate,
            transaction,
            registry,
        }
    }

    /// Takes the key of `key = expr`; before the other expressions, which only count for a keyed request.
    pub fn key<K: KeyExpression + ?Sized>(&mut self, key: &K) {
        if self.presented.is_some() {
            self.key = judge(self.policy, key.key().map(IdempotencyKey::new));
        }
    }

    /// Takes the caller of `caller = expr`.
    pub fn caller<C: Display + ?Sized>(&mut self, caller: &C) {
        if self.is_keyed() {
            self.caller = Some(caller.to_string());
        }
    }

    /// Takes the value of `fingerprint = expr`.
    pub fn fingerprint<V: Hash + ?Sized>(&mut self, value: &V) {
        if self.is_keyed() {
            self.fingerprint.value(value);
        }
    }

    /// Takes the predicate of `cache_if = path`.
    pub fn cache_if(&mut self, predicate: fn(&response::Parts) -> bool) {
        self.cache_if = Some(predicate);
    }

    /// Claims the request's key.
    ///
    /// # Errors
    ///
    /// The response that goes out in the handler's place: a replay or a refusal.
    pub async fn enter(self) -> Result<Passage, Response> {
        let policy = self.policy;
        let keyed = self.presented.zip(self.key);
        if keyed.is_none() && self.transaction.is_none() {
            return Ok(Passage(Way::Unguarded));
        }
        let span = telemetry::span(policy);
        let asking = Asking {
            policy,
            registry: self.registry.or_else(Registry::installed),
            span: span.clone(),
            cache_if: self.cache_if,
            fate: self.fate,
            transaction: self.transaction.clone(),
        };
        let entering = async {
            match (keyed, self.transaction) {
                (Some((presented, key)), _) => {
                    asking.enter(presented, key, self.caller.as_deref(), self.fingerprint).await
                }
                (None, Some(transaction)) => asking.begin(transaction).await,
                (None, None) => Ok(Passage(Way::Unguarded)),
            }
        };
        entering.instrument(span).await
    }

    fn is_keyed(&self) -> bool {
        matches!(self.key, Some(Ok(_)))
    }
}

/// The key of the header, if there is one.
fn from_headers(policy: &Policy, presented: &Presented) -> Option<Result<IdempotencyKey, InvalidKey>> {
    let mut values = presented.headers.get_all(policy.header).iter();
    let first = values.next()?;
    match values.next() {
        None => Some(IdempotencyKey::from_header(first)),
        Some(_) => Some(Err(InvalidKey::SeveralHeaderLines)),
    }
}

/// What the policy makes of the key; `None` lets the request pass unguarded.
fn judge(policy: &Policy, key: Option<Result<IdempotencyKey, InvalidKey>>) -> Option<Result<IdempotencyKey, Refusal>> {
    match key {
        Some(Ok(key)) => Some(Ok(key)),
        Some(Err(reason)) if policy.invalid_key == InvalidKeyPolicy::Reject => {
            Some(Err(Refusal::InvalidKey { reason }))
        }
        _ if policy.required => {
            let header = (policy.key == KeySource::Header).then_some(policy.header);
            Some(Err(Refusal::MissingKey { header }))
        }
        _ => None,
    }
}

/// The right to run the handler.
pub struct Passage(Way);

enum Way {
    Unguarded,
    Claimed(Box<Claimed>),
    InTransaction(Box<InTransaction>),
}

impl Passage {
    /// Runs the handler and settles the claim: its response is recorded before it is sent.
    ///
    /// # Panics
    ///
    /// Goes on with the handler's own panic, after the claim is settled.
    pub async fn execute<F: Future<Output = Response> + Send>(self, handler: F) -> Response {
        let span = match &self.0 {
            Way::Unguarded => return handler.await,
            Way::Claimed(claimed) => claimed.span().clone(),
            Way::InTransaction(transaction) => transaction.span().clone(),
        };
        let ran = AssertUnwindSafe(handler.instrument(span)).catch_unwind().await;
        match self.0 {
            Way::Unguarded => unreachable!("returned above"),
            Way::Claimed(claimed) => claimed.settle(ran).await,
            Way::InTransaction(transaction) => transaction.settle(ran).await,
        }
    }
}

/// Turns what the handler returned into a response; a name of its own, so that an error can point at the return type.
pub fn into_response<R: IntoResponse>(value: R) -> Response {
    value.into_response()
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
