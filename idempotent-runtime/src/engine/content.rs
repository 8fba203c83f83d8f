//! Reads a response's body as far as it can be recorded, without losing a byte of it for the client.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::BoxError;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{header, response};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use mediatype::MediaType;

/// A response's body, read as far as the limit.
pub(super) enum Content {
    /// All of it, and the body for the client.
    Whole(Bytes, Body),
    /// Too large, endless or broken: the body for the client streams on.
    Unrecordable(Body),
}

impl Content {
    pub(super) async fn read(parts: &response::Parts, mut body: Body, limit: usize) -> Self {
        if is_endless(parts) || body.size_hint().lower() > limit as u64 {
            return Self::Unrecordable(body);
        }
        let mut frames = VecDeque::new();
        let mut length = 0;
        loop {
            match body.frame().await {
                None => break,
                Some(Ok(frame)) => {
                    length += frame.data_ref().map_or(0, Bytes::len);
                    frames.push_back(Ok(frame));
                }
                // The client must see the response break off, as it would have without us.
                Some(Err(error)) => {
                    frames.push_back(Err(error));
                    return Self::Unrecordable(Body::new(Resumed { frames, rest: body }));
                }
            }
            if length > limit {
                return Self::Unrecordable(Body::new(Resumed { frames, rest: body }));
            }
        }
        let whole = concatenated(&frames, length);
        let has_trailers = frames.iter().flatten().any(Frame::is_trailers);
        let body = if has_trailers { Body::new(Resumed { frames, rest: body }) } else { Body::from(whole.clone()) };
        Self::Whole(whole, body)
    }
}

/// Server-sent events may never end, and a client that waits for the first one must get it when it is sent.
fn is_endless(parts: &response::Parts) -> bool {
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| MediaType::parse(value).ok());
    media_type.is_some_and(|media_type| media_type.essence().to_string().eq_ignore_ascii_case("text/event-stream"))
}

fn concatenated(frames: &VecDeque<Result<Frame<Bytes>, axum::Error>>, length: usize) -> Bytes {
    let mut data = frames.iter().flatten().filter_map(Frame::data_ref);
    match (data.next(), data.next()) {
        (None, _) => Bytes::new(),
        (Some(only), None) => only.clone(),
        (Some(first), Some(second)) => {
            let mut whole = BytesMut::with_capacity(length);
            whole.extend_from_slice(first);
            whole.extend_from_slice(second);
            data.for_each(|chunk| whole.extend_from_slice(chunk));
            whole.freeze()
        }
    }
}

/// What was read already, then the rest.
struct Resumed {
    frames: VecDeque<Result<Frame<Bytes>, axum::Error>>,
    rest: Body,
}

impl http_body::Body for Resumed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(frame) = self.frames.pop_front() {
            return Poll::Ready(Some(frame.map_err(Into::into)));
        }
        Pin::new(&mut self.rest).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let read: u64 = self.frames.iter().flatten().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(read + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(read + upper);
        }
        hint
    }
}
