//! Reads a response's body up to the size that can be recorded. The client still gets every byte.

use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, StatusCode, header, response};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;

use crate::deadline::Deadline;
use crate::policy::Policy;
use crate::policy::values::Stream;
use crate::record::alone::Alone;
use crate::request::body::{Gathered, Resumed};
use crate::request::response_mark::remove_from;

/// A response's body, read up to the limit.
pub(super) enum Content {
    /// The whole body, its trailers, and the body for the client.
    Whole(Bytes, Option<HeaderMap>, Body),
    /// The body is larger than the limit, or does not end in time. Contains the body for the client, which continues to
    /// stream.
    TooLarge(Body),
    /// The body broke off. Contains the body for the client, which breaks off too.
    Broken(Body),
}

/// A body that is one piece in memory.
pub(super) struct Piece {
    pub(super) bytes: Bytes,
    /// Set if the bytes are alone in their buffer.
    pub(super) alone: Option<Alone>,
    /// The body for the client.
    pub(super) body: Body,
}

/// In bytes. A smaller body is copied, which costs less than the check whether it must be.
const LARGE: usize = 4 * 1024;

impl Piece {
    fn of(bytes: Bytes) -> Self {
        if bytes.len() < LARGE || !bytes.is_unique() {
            return Self { alone: None, body: Body::from(bytes.clone()), bytes };
        }
        // There is no other handle to the buffer. The rest of it is given back, which seldom moves the bytes.
        let mut buffer = Vec::from(bytes);
        buffer.shrink_to_fit();
        let bytes = Bytes::from(buffer);
        Self { alone: Some(Alone::of(&bytes)), body: Body::from(bytes.clone()), bytes }
    }
}

impl Content {
    /// Returns a body that is one piece in memory. Any other body is returned as an error, with nothing lost.
    pub(super) fn read_now(mut body: Body, limit: usize) -> Result<Piece, Body> {
        if body.size_hint().exact().is_none_or(|length| length > limit as u64) {
            return Err(body);
        }
        let Some(first) = body.frame().now_or_never() else { return Err(body) };
        match first.map(|frame| frame.map(Frame::into_data)) {
            None => Ok(Piece { bytes: Bytes::new(), alone: None, body: Body::empty() }),
            Some(Ok(Ok(data))) if body.is_end_stream() => Ok(Piece::of(data)),
            Some(Ok(Ok(data))) => Err(Body::new(Resumed::new([Ok(Frame::data(data))], body))),
            Some(Ok(Err(trailers))) => Err(Body::new(Resumed::new([Ok(trailers)], body))),
            Some(Err(error)) => Err(Body::new(Resumed::new([Err(error.into())], Body::empty()))),
        }
    }

    /// Reads a body. A body of unknown length is read for at most one lease.
    pub(super) async fn read(parts: &response::Parts, mut body: Body, policy: &Policy) -> Self {
        let limit = policy.max_body();
        let is_of_unknown_length = is_of_unknown_length(parts, &body);
        let is_passed = is_of_unknown_length && (policy.stream() == Stream::Pass || is_event_stream(parts));
        if is_passed || body.size_hint().lower() > limit as u64 {
            return Self::TooLarge(body);
        }
        let time = if is_of_unknown_length { Deadline::after(policy.lease()) } else { Deadline::NEVER };
        let mut data = Gathered::default();
        loop {
            let Some(frame) = time.bound(body.frame()).await else {
                return Self::TooLarge(Body::new(Resumed::new([Ok(Frame::data(data.whole()))], body)));
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                None => return Self::Whole(data.whole(), None, Body::from(data.whole())),
                Some(Ok(Ok(chunk))) => data.push(chunk),
                // Trailers come last.
                Some(Ok(Err(mut frame))) => {
                    frame.trailers_mut().into_iter().for_each(remove_from);
                    let trailers = frame.trailers_ref().cloned();
                    let frames = [Ok(Frame::data(data.whole())), Ok(frame)];
                    return Self::Whole(data.whole(), trailers, Body::new(Resumed::new(frames, body)));
                }
                Some(Err(error)) => {
                    let frames = [Ok(Frame::data(data.whole())), Err(error.into())];
                    return Self::Broken(Body::new(Resumed::new(frames, Body::empty())));
                }
            }
            // A body that is always ready never reaches the deadline above, and blocks its thread for other requests.
            if data.len() > limit || time.is_over() {
                return Self::TooLarge(Body::new(Resumed::new([Ok(Frame::data(data.whole()))], body)));
            }
            tokio::task::consume_budget().await;
        }
    }
}

/// Returns whether the head does not state the length of the body, so that the client considers the body complete when
/// it ends.
pub(super) fn is_of_unknown_length(parts: &response::Parts, body: &Body) -> bool {
    let has_body = !matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    has_body && body.size_hint().exact().is_none() && !parts.headers.contains_key(header::CONTENT_LENGTH)
}

/// Returns whether the response consists of server-sent events. These may never end, and a client that waits for the
/// first event must get it when it is sent.
fn is_event_stream(parts: &response::Parts) -> bool {
    // Parameters and upper or lower case do not matter.
    let media_type = |value: &HeaderValue| value.as_bytes().split(|&byte| byte == b';').next().map(<[u8]>::to_vec);
    let media_type = parts.headers.get(header::CONTENT_TYPE).and_then(media_type).unwrap_or_default();
    media_type.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}
