//! The wrapper around a handler's last argument that remembers the request it was extracted from.

use std::marker::PhantomData;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, OriginalUri, Request};
use axum::response::{IntoResponse, Response};
use axum::{BoxError, RequestExt};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri};
use http_body_util::{BodyExt, LengthLimitError};

use crate::Registry;
use crate::body::Remembering;
use crate::idempotency::Execution;

/// The last argument of an annotated handler, with what the engine needs to know of the request.
///
/// The attribute writes this type into the handler's signature. A unit test that calls the handler directly passes
/// `.into()`, `().into()` where there is none; such a call runs unguarded.
///
/// # Examples
///
/// ```
/// use axum::Json;
/// use idempotent_runtime::idempotent;
///
/// #[idempotent]
/// async fn double(Json(number): Json<u32>) -> String {
///     (number * 2).to_string()
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let response = double(Json(21).into()).await;
/// assert_eq!(response.status(), 200);
/// # });
/// ```
pub struct Guarded<B, M = Buffered> {
    inner: B,
    request: Option<Presented>,
    mode: PhantomData<fn() -> M>,
}

/// The body is part of the fingerprint: it is read before the inner extractor gets it.
pub enum Buffered {}

/// The body is not part of the fingerprint: it reaches the inner extractor as it comes.
pub enum Streamed {}

/// Axum's marker for the extractors that [`Guarded`] wraps, over the inner extractor's own marker.
pub struct ViaGuarded<M>(PhantomData<M>);

/// What a request brought: all that the engine reads of it.
pub(crate) struct Presented {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: PresentedBody,
    pub(crate) registry: Option<Registry>,
    pub(crate) execution: Arc<Execution>,
}

pub(crate) enum PresentedBody {
    Read(Bytes),
    NotRead,
    /// It could not be read; the answer is what axum's own body extractors say.
    Broken(StatusCode, String),
}

impl<B, M> Guarded<B, M> {
    pub(crate) fn into_parts(self) -> (B, Option<Presented>) {
        (self.inner, self.request)
    }
}

impl<B, M> From<B> for Guarded<B, M> {
    fn from(inner: B) -> Self {
        Self { inner, request: None, mode: PhantomData }
    }
}

impl<S, B, M, Mode> FromRequest<S, ViaGuarded<M>> for Guarded<B, Mode>
where
    B: FromRequest<S, M>,
    S: Send + Sync,
    Mode: BodyMode,
{
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let execution = Execution::of(&mut parts.extensions);
        let method = parts.method.clone();
        let uri =
            parts.extensions.get::<OriginalUri>().map_or_else(|| parts.uri.clone(), |original| original.0.clone());
        let headers = parts.headers.clone();
        let registry = parts.extensions.get::<Registry>().cloned();
        let request = Request::from_parts(parts, body);
        let (body, request) = if Mode::BUFFERED { buffer(request).await } else { (PresentedBody::NotRead, request) };
        let inner = B::from_request(request, state).await.map_err(IntoResponse::into_response)?;
        let presented = Presented { method, uri, headers, body, registry, execution };
        Ok(Self { inner, request: Some(presented), mode: PhantomData })
    }
}

/// Whether the body is read before the inner extractor gets the request.
pub trait BodyMode: sealed::Sealed {
    #[doc(hidden)]
    const BUFFERED: bool;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Buffered {}
    impl Sealed for super::Streamed {}
}

impl BodyMode for Buffered {
    const BUFFERED: bool = true;
}

impl BodyMode for Streamed {
    const BUFFERED: bool = false;
}

/// Reads the body, and gives the request back with the same bytes.
async fn buffer(request: Request) -> (PresentedBody, Request) {
    let (parts, body) = request.into_parts();
    let remembering = Remembering::new(body);
    let request = Request::from_parts(parts, Body::new(remembering.clone()));
    // `DefaultBodyLimit` is known to axum alone: it applies it here, and again where the inner extractor reads.
    let (parts, limited) = request.with_limited_body().into_parts();
    match limited.collect().await {
        Ok(collected) => {
            let bytes = collected.to_bytes();
            let request = Request::from_parts(parts, Body::from(bytes.clone()));
            (PresentedBody::Read(bytes), request)
        }
        Err(error) => {
            let error = innermost(error);
            let is_too_large = error.is::<LengthLimitError>();
            let status = if is_too_large { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST };
            let broken = PresentedBody::Broken(status, format!("Failed to buffer the request body: {error}"));
            // The inner extractor meets the same limit or error and answers it in its own way; one that reads without a
            // limit gets all of it, for a request without a key.
            let again = remembering.again((!is_too_large).then_some(error));
            (broken, Request::from_parts(parts, Body::new(again)))
        }
    }
}

/// Axum wraps a body's error once for each layer; we look for what lies beneath.
fn innermost(error: axum::Error) -> BoxError {
    let mut error: BoxError = error.into();
    loop {
        match error.downcast::<axum::Error>() {
            Ok(wrapper) => error = wrapper.into_inner(),
            Err(innermost) => return innermost,
        }
    }
}
