//! Reads the data that the engine needs from a request: its key and its content.

use std::sync::Arc;

use axum::extract::Request;
use http::Method;

use crate::fingerprint::builder::Credentials;
use crate::idempotency_key::{IdempotencyKey, InvalidKey, key_in};
use crate::policy::values::{KeySource, Reads};
use crate::policy::{Policy, Settings};
use crate::record::headers::IDEMPOTENCY_KEY;
use crate::registry::OfRequest;
use crate::registry::Registry;
use crate::rejection::request::{Audience, RejectedRequest};
use crate::request::claim_input::ClaimInput;
use crate::request::context::Execution;
use crate::request::coverage::find_sender;
use crate::request::request_body::BodyLimit;

/// All the data that the engine reads from a request.
pub(crate) struct RequestInput {
    pub(crate) method: Method,
    pub(crate) registry: Option<Registry>,
    pub(crate) audience: Audience,
    /// `None` if the header with the key is missing and no extractor has used the execution.
    pub(crate) execution: Option<Arc<Execution>>,
    pub(crate) key: InputKey,
    pub(crate) claim_input: ClaimInput,
}

pub(crate) enum InputKey {
    /// The key in the header that the policy names.
    Header(Option<Result<IdempotencyKey, InvalidKey>>),
    /// The key is in the handler's arguments.
    Elsewhere,
    /// The key that the `key` function of a layer returns.
    Computed(Option<Result<IdempotencyKey, InvalidKey>>),
}

impl RequestInput {
    /// Reads a request before the extractors of its handler, whose policy has the default rules for keys and methods.
    /// The body is read only if the request is guarded. Writes into `place`, so that the future of the handler, which
    /// contains this one, stays small.
    pub(crate) async fn read(place: &mut Option<Self>, request: &mut Request, reads: Reads) {
        let key = InputKey::Header(key_in(&request.headers().get_all(&IDEMPOTENCY_KEY)));
        let Self { key, method, registry, claim_input, .. } = place.insert(Self::of_head(request, key, reads));
        let reads = match key {
            InputKey::Header(Some(key)) if Settings::DEFAULT.methods.contain(method) => match key {
                Ok(_) => reads,
                // Such a key is rejected. The client may have to send its body before it reads the answer.
                Err(_) => Reads::Nothing,
            },
            _ => return,
        };
        claim_input.read_body(request, reads, registry.as_ref(), BodyLimit::OfRoute).await;
    }

    /// Reads the head of a request to the handler with this policy. `Gate::begin_to_read` decides whether the body is
    /// read.
    pub(crate) fn of_handler(request: &mut Request, policy: &Policy) -> Self {
        let key = match policy.key() {
            KeySource::Header => InputKey::Header(key_in(&request.headers().get_all(policy.header()))),
            KeySource::Expression => InputKey::Elsewhere,
        };
        Self::of_head(request, key, policy.fingerprint().reads())
    }

    fn of_head(request: &mut Request, key: InputKey, reads: Reads) -> Self {
        let registry = Registry::serving(request.extensions());
        let (execution, claim_input) = if key.is_none() {
            let execution = Execution::of_unkeyed_guard(request.extensions());
            if let Some(execution) = &execution {
                arrive_unkeyed(execution, registry.as_ref(), request);
            }
            (execution, ClaimInput::default())
        } else {
            let execution = Execution::of_guard(request.extensions());
            let credentials = arrive(&execution, registry.as_ref(), request);
            (Some(execution), ClaimInput::of_head(request, reads, registry.as_ref(), None, credentials))
        };
        Self::new(request, registry, execution, key, claim_input)
    }

    /// Reads the head of a request to a layer. `caller` is the layer's function, which is called before the registry's.
    /// `Gate::begin_to_read` decides whether the body is read.
    pub(crate) fn of_layer(
        request: &mut Request,
        execution: Arc<Execution>,
        registry: Option<Registry>,
        key: InputKey,
        caller: Option<&OfRequest>,
        policy: &Policy,
    ) -> Self {
        let credentials = arrive(&execution, registry.as_ref(), request);
        let claim_input = if key.is_none() {
            ClaimInput::default()
        } else {
            ClaimInput::of_head(request, policy.fingerprint().reads(), registry.as_ref(), caller, credentials)
        };
        Self::new(request, registry, Some(execution), key, claim_input)
    }

    fn new(
        request: &Request,
        registry: Option<Registry>,
        execution: Option<Arc<Execution>>,
        key: InputKey,
        claim_input: ClaimInput,
    ) -> Self {
        let audience = Registry::audience(registry.as_ref(), request.headers(), || RejectedRequest::from(request));
        Self { method: request.method().clone(), registry, audience, execution, key, claim_input }
    }
}

/// Lets the execution of a request without a key know the request, if there is a guard around it: a request that its handler sends
/// finds the key of that guard.
pub(super) fn arrive_unkeyed(execution: &Arc<Execution>, registry: Option<&Registry>, request: &Request) {
    find_sender(execution, request.headers());
    if execution.around().is_some() {
        execution.arrive(registry, request);
    }
}

fn arrive(execution: &Arc<Execution>, registry: Option<&Registry>, request: &Request) -> Credentials {
    find_sender(execution, request.headers());
    execution.arrive(registry, request)
}

impl InputKey {
    fn is_none(&self) -> bool {
        matches!(self, Self::Header(None) | Self::Computed(None))
    }

    /// Returns whether a client sends the key in a header.
    pub(crate) fn is_in_header(&self) -> bool {
        !matches!(self, Self::Computed(_))
    }

    /// Returns the key, unless it is in the handler's arguments.
    pub(crate) fn into_key(self) -> Option<Result<IdempotencyKey, InvalidKey>> {
        match self {
            Self::Header(key) | Self::Computed(key) => key,
            Self::Elsewhere => None,
        }
    }
}
