//! Reads a response's body as far as it can be recorded, without losing a byte of it for the client.

use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, header, response};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use mediatype::{MediaType, names};

use crate::request::body::{Gathered, Resumed};

/// A response's body, read as far as the limit.
pub(super) enum Content {
    /// All of it, and the body for the client.
    Whole(Bytes, Body),
    /// Larger than the limit, or endless: the body for the client streams on.
    TooLarge(Body),
    /// It broke off, and does so for the client too.
    Broken(Body),
}

impl Content {
    /// All of a body that is one piece in memory, and the body for the client; else the body as it was.
    pub(super) fn read_now(parts: &response::Parts, mut body: Body, limit: usize) -> Result<(Bytes, Body), Body> {
        if is_endless(parts) || body.size_hint().exact().is_none_or(|length| length > limit as u64) {
            return Err(body);
        }
        let Some(first) = body.frame().now_or_never() else { return Err(body) };
        match first.map(|frame| frame.map(Frame::into_data)) {
            None => Ok((Bytes::new(), Body::empty())),
            Some(Ok(Ok(data))) if body.is_end_stream() => Ok((data.clone(), Body::from(data))),
            Some(Ok(Ok(data))) => Err(Body::new(Resumed::new([Ok(Frame::data(data))], body))),
            Some(Ok(Err(trailers))) => Err(Body::new(Resumed::new([Ok(trailers)], body))),
            Some(Err(error)) => Err(Body::new(Resumed::new([Err(error.into())], Body::empty()))),
        }
    }

    pub(super) async fn read(parts: &response::Parts, mut body: Body, limit: usize) -> Self {
        if is_endless(parts) || body.size_hint().lower() > limit as u64 {
            return Self::TooLarge(body);
        }
        let mut data = Gathered::default();
        loop {
            match body.frame().await.map(|frame| frame.map(Frame::into_data)) {
                None => return Self::Whole(data.whole(), Body::from(data.whole())),
                Some(Ok(Ok(chunk))) => data.push(chunk),
                // Trailers come last; a record has none, as its header rules say.
                Some(Ok(Err(trailers))) => {
                    let frames = [Ok(Frame::data(data.whole())), Ok(trailers)];
                    return Self::Whole(data.whole(), Body::new(Resumed::new(frames, body)));
                }
                Some(Err(error)) => {
                    let frames = [Ok(Frame::data(data.whole())), Err(error.into())];
                    return Self::Broken(Body::new(Resumed::new(frames, Body::empty())));
                }
            }
            if data.len() > limit {
                return Self::TooLarge(Body::new(Resumed::new([Ok(Frame::data(data.whole()))], body)));
            }
        }
    }
}

/// Server-sent events may never end, and a client that waits for the first one must get it when it is sent.
fn is_endless(parts: &response::Parts) -> bool {
    const TEXT: &[u8] = b"text/";
    let is_text =
        |value: &&HeaderValue| value.as_bytes().get(..TEXT.len()).is_some_and(|start| start.eq_ignore_ascii_case(TEXT));
    let content_type = parts.headers.get(header::CONTENT_TYPE).filter(is_text).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| MediaType::parse(value).ok());
    media_type.is_some_and(|media_type| (media_type.ty, media_type.subty) == (names::TEXT, names::EVENT_STREAM))
}
