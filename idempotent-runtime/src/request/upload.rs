//! The unread body of a request that is answered without its handler. Its client still sends the body, and reads no
//! response before it has finished.
//!
//! If a server answers first, it closes the connection while bytes of the client are on their way, and the client sees
//! a broken connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::EXPECT;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;

use crate::deadline::Deadline;
use crate::request::context::Execution;
use crate::sync::{Mutex, lock};

/// How long a response waits for its client's body.
const PATIENCE: Duration = Duration::from_secs(5);
/// In bytes. At least this many bytes are read, even if the route's own limit is lower, because that limit does not
/// apply to a streamed body.
const AT_LEAST: u64 = 64 * 1024 * 1024;

/// A request's body. The handler's arguments hold the same body.
#[derive(Clone)]
pub(crate) struct Upload(Arc<State>);

struct State {
    body: Mutex<Polled>,
    /// In bytes. `None` if there is no limit.
    limit: Option<u64>,
    /// The client sends its body only when the server begins to read it.
    is_asked_for: bool,
}

struct Polled {
    body: Body,
    has_begun: bool,
    has_broken_off: bool,
}

impl Upload {
    /// Shares the body of a request. Returns `None` if the request has no body. `limit` is the limit of the route.
    pub(crate) fn of(request: &mut Request, limit: Option<u64>) -> Option<Self> {
        if request.body().is_end_stream() {
            return None;
        }
        let is_asked_for = request
            .headers()
            .get(EXPECT)
            .is_some_and(|expected| expected.as_bytes().trim_ascii().eq_ignore_ascii_case(b"100-continue"));
        let body =
            Mutex::new(Polled { body: std::mem::take(request.body_mut()), has_begun: false, has_broken_off: false });
        let limit = limit.map(|limit| limit.max(AT_LEAST));
        let upload = Self(Arc::new(State { body, limit, is_asked_for }));
        *request.body_mut() = Body::new(upload.clone());
        Some(upload)
    }

    /// Returns whether the reader of the body got an error in place of the rest.
    pub(super) fn has_broken_off(&self) -> bool {
        lock(&self.0.body).has_broken_off
    }

    /// Reads the rest of the body that the client still sends, within limits.
    pub(crate) async fn drain(self) {
        let mut body = {
            let mut polled = lock(&self.0.body);
            if self.0.is_asked_for && !polled.has_begun {
                return;
            }
            std::mem::take(&mut polled.body)
        };
        let reading = async {
            let mut left = self.0.limit;
            while let Some(Ok(frame)) = body.frame().await {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                left = left.map(|left| left.saturating_sub(length));
                if left == Some(0) {
                    return;
                }
                tokio::task::consume_budget().await;
            }
        };
        // A client that needs more time than `PATIENCE` may not be able to read the response.
        let _ = Deadline::after(PATIENCE).bound(reading).await;
    }
}

/// The body of a request that the client may still be sending, until the handler runs.
pub(super) struct Unread {
    upload: Upload,
    execution: Option<Arc<Execution>>,
}

impl Unread {
    pub(super) fn new(upload: Upload, execution: Option<Arc<Execution>>) -> Self {
        Self { upload, execution }
    }

    /// Returns the response once the client has sent its body.
    pub(super) fn drained_before(self, answer: Response) -> BoxFuture<'static, Response> {
        if let Some(execution) = &self.execution {
            // Without the client, nothing remains to be finished.
            execution.run.detach_state.set_must_finish(false);
        }
        Box::pin(async move {
            self.upload.drain().await;
            answer
        })
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut polled = lock(&self.0.body);
        polled.has_begun = true;
        let frame = Pin::new(&mut polled.body).poll_frame(cx);
        polled.has_broken_off |= matches!(frame, Poll::Ready(Some(Err(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0.body).body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.0.body).body.size_hint()
    }
}
