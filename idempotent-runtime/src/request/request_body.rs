//! Reads the body of a request into memory. The extractors still get every byte, and every error.

use std::convert::Infallible;
use std::fmt::Display;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::{BoxError, RequestExt};
use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, LengthLimitError};

use crate::request::body::{Gathered, Resumed};

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
    pub(super) fn bytes(self, request: &mut Request) -> Option<u64> {
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

/// A body of unknown length.
struct Unbounded;

impl http_body::Body for Unbounded {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }
}

/// In bytes. A larger body is read only up to `DefaultBodyLimit`.
const SMALL_BODY: u64 = 4 * 1024;

/// Returns whether the whole body is likely to have arrived with the head.
pub(super) fn is_small(request: &Request) -> bool {
    request.body().size_hint().exact().is_some_and(|length| length <= SMALL_BODY)
}

/// Reads the body, and puts the same bytes in its place.
pub(super) async fn buffer(request: &mut Request, limit: BodyLimit) -> Result<Bytes, Broken> {
    // A small body is already in memory with the head, so it needs no limit here: the inner extractor checks the
    // length.
    if is_small(request) && !matches!(limit, BodyLimit::Bytes(_)) {
        return buffer_up_to(None, request.body_mut()).await;
    }
    let limit = limit.bytes(request);
    buffer_up_to(limit, request.body_mut()).await
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
pub(super) type Broken = Box<(StatusCode, String)>;

#[expect(clippy::unnecessary_box_returns, reason = "it travels in the request, nearly always absent")]
fn broken(status: StatusCode, error: &dyn Display) -> Broken {
    Box::new((status, format!("Failed to buffer the request body: {error}")))
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
