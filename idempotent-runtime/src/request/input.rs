//! Reads the data that the engine needs from a request: its key and its content.

use std::convert::Infallible;
use std::fmt::Display;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::{BoxError, RequestExt};
use bytes::Bytes;
use futures_util::future::OptionFuture;
use http::{Method, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, LengthLimitError};

use crate::caller_limit::{Caller, CallerLimit};
use crate::fingerprint::body::{BodyForm, digest_of_body, has_several_boundaries};
use crate::fingerprint::builder::{Credentials, PartDigest};
use crate::fingerprint::target::digest_of_target;
use crate::idempotency_key::{IdempotencyKey, InvalidKey, key_in};
use crate::observe::traceparent::TraceParent;
use crate::policy::values::{KeySource, Reads};
use crate::policy::{Policy, Settings};
use crate::record::headers::IDEMPOTENCY_KEY;
use crate::registry::OfRequest;
use crate::registry::Registry;
use crate::rejection::problem::{RETRY_AFTER, Rejection};
use crate::rejection::request::{Audience, RejectedRequest};
use crate::request::body::{Gathered, Resumed};
use crate::request::context::Execution;
use crate::request::coverage::find_sender;
use crate::request::upload::Upload;

/// All the data that the engine reads from a request.
pub(crate) struct RequestInput {
    pub(crate) method: Method,
    pub(crate) registry: Option<Registry>,
    pub(crate) audience: Audience,
    /// `None` if the request has no key and no extractor has used the execution.
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

    /// Reads the head of a request to the handler with this policy. [`Gate::begin_to_read`] decides whether the body is
    /// read.
    ///
    /// [`Gate::begin_to_read`]: crate::request::identify::Gate::begin_to_read
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
            (Execution::of_unkeyed_guard(request.extensions()), ClaimInput::default())
        } else {
            let execution = Execution::of_guard(request.extensions());
            let credentials = arrive(&execution, registry.as_ref(), request);
            (Some(execution), ClaimInput::of_head(request, reads, registry.as_ref(), None, credentials))
        };
        Self::new(request, registry, execution, key, claim_input)
    }

    /// Reads the head of a request to a layer. `caller` is the layer's function, which is called before the registry's.
    /// [`Gate::begin_to_read`] decides whether the body is read.
    ///
    /// [`Gate::begin_to_read`]: crate::request::identify::Gate::begin_to_read
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

/// Calls a function of the application with the head of the request, and returns the function's result.
pub(crate) fn ask(request: &mut Request, function: &OfRequest) -> Option<String> {
    let (parts, body) = mem::take(request).into_parts();
    let answer = function(&parts);
    *request = Request::from_parts(parts, body);
    answer
}

/// The rejection of a request whose body was not read because of other bodies of its caller.
pub(crate) const BODY_NOT_PERMITTED: Rejection =
    Rejection::TooManyInFlight { retry_after: RETRY_AFTER, of_caller: true };

/// The content of the request and its caller. Empty if there is no key.
#[derive(Default)]
pub(crate) struct ClaimInput {
    /// The caller that the registry or the layer names.
    pub(crate) caller: Option<String>,
    /// The credentials, if no caller is named.
    pub(crate) credentials: Credentials,
    pub(crate) trace: Option<Box<TraceParent>>,
    /// The digest of the target, if it is part of the fingerprint.
    pub(crate) target: Option<PartDigest>,
    pub(crate) body: InputBody,
    /// The body that was not read, if there is one.
    pub(crate) upload: Option<Upload>,
}

#[derive(Default)]
pub(crate) enum InputBody {
    Read(PartDigest),
    #[default]
    NotRead,
    /// The body was not read, because other bodies of the caller hold all permits.
    NotPermitted,
    /// The body could not be read. Contains the response that axum's own body extractors would send.
    Broken(Broken),
}

impl ClaimInput {
    /// Returns whether the body could not be read, so that nothing can be claimed.
    pub(super) fn has_broken_body(&self) -> bool {
        matches!(self.body, InputBody::Broken(_))
    }

    /// Reads the head of a request. `own` is a function that names the caller and is called before the registry's.
    fn of_head(
        request: &mut Request,
        reads: Reads,
        registry: Option<&Registry>,
        own: Option<&OfRequest>,
        credentials: Credentials,
    ) -> Self {
        let functions = [own, registry.and_then(Registry::caller)];
        let caller = functions.into_iter().flatten().find_map(|function| ask(request, function));
        let target = match reads {
            Reads::Nothing => None,
            Reads::Target => Some(digest_of_target(request, false)),
            Reads::Body | Reads::Json => Some(digest_of_target(request, true)),
        };
        Self {
            credentials: if caller.is_none() { credentials } else { Credentials::default() },
            caller,
            trace: TraceParent::of(request.headers()).map(Box::new),
            target,
            body: InputBody::NotRead,
            upload: None,
        }
    }

    /// Reads the body, if it is part of the fingerprint.
    pub(super) async fn read_body(
        &mut self,
        request: &mut Request,
        reads: Reads,
        registry: Option<&Registry>,
        limit: BodyLimit,
    ) {
        let form = match reads {
            Reads::Nothing | Reads::Target => None,
            Reads::Body => Some(BodyForm::Bytes),
            Reads::Json => Some(BodyForm::Json),
        };
        if let Some(form) = form {
            let limited = self.body_limit_of_caller(is_small(request), registry);
            // Boxed, so that the future of the handler stays small.
            let permit = OptionFuture::from(limited.map(|(permits, caller)| Box::pin(permits.read_body(caller)))).await;
            // The permit is held while the body is read.
            self.body = match &permit {
                Some(None) => InputBody::NotPermitted,
                None | Some(Some(_)) => read(request, form, limit).await,
            };
        }
        if matches!(self.body, InputBody::NotRead | InputBody::NotPermitted) {
            let limit = limit.bytes(request);
            self.upload = Upload::of(request, limit);
        }
    }

    /// Returns the limit by which the body may have to wait, and the caller that it counts for. The handler may name
    /// another caller later.
    fn body_limit_of_caller<'r>(
        &self,
        is_small: bool,
        registry: Option<&'r Registry>,
    ) -> Option<(&'r Arc<CallerLimit>, Caller)> {
        let registry = registry.filter(|registry| !is_small && !registry.is_disabled())?;
        let limit = registry.caller_limit()?;
        Some((limit, Caller::of(self.caller.as_deref(), registry.credential_headers(), &self.credentials)))
    }
}

fn is_small(request: &Request) -> bool {
    request.body().size_hint().exact().is_some_and(|length| length <= SMALL_BODY)
}

/// Reads and digests the body. The handler can still read it afterwards.
async fn read(request: &mut Request, form: BodyForm, limit: BodyLimit) -> InputBody {
    if has_several_boundaries(request.headers()) {
        return InputBody::Broken(Box::new((StatusCode::BAD_REQUEST, SEVERAL_BOUNDARIES.to_owned())));
    }
    match buffer(request, limit).await {
        Ok(bytes) => InputBody::Read(digest_of_body(request.headers(), &bytes, form)),
        Err(broken) => InputBody::Broken(broken),
    }
}

const SEVERAL_BOUNDARIES: &str = "the media type has more than one `boundary`, so readers may divide the body in different \
     ways: send one";

/// In bytes. A larger body is read only up to `DefaultBodyLimit`.
const SMALL_BODY: u64 = 4 * 1024;

/// Reads the body, and puts the same bytes in its place.
async fn buffer(request: &mut Request, limit: BodyLimit) -> Result<Bytes, Broken> {
    // A small body is already in memory with the head, so it needs no limit here: the inner extractor checks the
    // length.
    if is_small(request) && !matches!(limit, BodyLimit::Bytes(_)) {
        return buffer_up_to(None, request.body_mut()).await;
    }
    let limit = limit.bytes(request);
    buffer_up_to(limit, request.body_mut()).await
}

/// How much of a body is read into memory.
#[derive(Clone, Copy)]
pub(crate) enum BodyLimit {
    /// The `DefaultBodyLimit` of the route.
    OfRoute,
    /// The `DefaultBodyLimit` around a layer. Without one, a size that the routes beneath the layer are likely to
    /// allow. The layer does not know the limits of these routes, which apply to the body too.
    AroundLayer,
    Bytes(u64),
}

/// In bytes. Axum's own limit, which axum does not distinguish from no `DefaultBodyLimit` at all.
const AXUM_DEFAULT: u64 = 2 * 1024 * 1024;
/// In bytes.
const LAYER_DEFAULT: u64 = 64 * 1024 * 1024;

impl BodyLimit {
    fn bytes(self, request: &mut Request) -> Option<u64> {
        match self {
            Self::OfRoute => body_limit(request),
            Self::AroundLayer => match body_limit(request) {
                Some(AXUM_DEFAULT) => Some(LAYER_DEFAULT),
                limit => limit,
            },
            Self::Bytes(limit) => Some(limit),
        }
    }
}

/// Returns the route's `DefaultBodyLimit`, in bytes. Only axum knows this limit. Axum shows the limit as the upper size
/// bound of a body that has no bound itself.
fn body_limit(request: &mut Request) -> Option<u64> {
    let body = mem::replace(request.body_mut(), Body::new(Unbounded));
    let (parts, limited) = mem::take(request).with_limited_body().into_parts();
    *request = Request::from_parts(parts, body);
    limited.size_hint().upper()
}

/// Reads a body of at most `limit` bytes into one buffer, however small its chunks are.
async fn buffer_up_to(limit: Option<u64>, body: &mut Body) -> Result<Bytes, Broken> {
    let mut data = Gathered::default();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(chunk)) => {
                data.push(chunk);
                if limit.is_some_and(|limit| data.len() as u64 > limit) {
                    // The inner extractor reaches the same limit and answers as it always does. An extractor that reads
                    // without a limit gets the whole body, like for a request without a key.
                    let rest = mem::take(body);
                    *body = Body::new(Resumed::new([Ok(Frame::data(data.whole()))], rest));
                    return Err(broken(StatusCode::PAYLOAD_TOO_LARGE, &"length limit exceeded"));
                }
            }
            // Trailers come last.
            Ok(Err(frame)) => trailers = Some(frame),
            Err(error) => {
                let error = innermost(error);
                let is_too_large = error.is::<LengthLimitError>();
                let status = if is_too_large { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST };
                let broken = broken(status, &error);
                // The inner extractor gets the same error and answers as it always does.
                *body = Body::new(Resumed::new([Ok(Frame::data(data.whole())), Err(error)], Body::empty()));
                return Err(broken);
            }
        }
    }
    let bytes = data.whole();
    *body = match trailers {
        None => Body::from(bytes.clone()),
        Some(trailers) => Body::new(Resumed::new([Ok(Frame::data(bytes.clone())), Ok(trailers)], Body::empty())),
    };
    Ok(bytes)
}

/// The response that axum's own body extractors would send.
type Broken = Box<(StatusCode, String)>;

#[expect(clippy::unnecessary_box_returns, reason = "it travels in the request, nearly always absent")]
fn broken(status: StatusCode, error: &dyn Display) -> Broken {
    Box::new((status, format!("Failed to buffer the request body: {error}")))
}

/// A body of unknown length.
struct Unbounded;

impl http_body::Body for Unbounded {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }
}

/// Returns the innermost error, because axum wraps a body's error once for each layer.
fn innermost(error: axum::Error) -> BoxError {
    let mut error: BoxError = error.into();
    loop {
        match error.downcast::<axum::Error>() {
            Ok(wrapper) => error = wrapper.into_inner(),
            Err(innermost) => return innermost,
        }
    }
}
