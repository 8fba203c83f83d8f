//! Reads a response's body as far as it can be recorded, without losing a byte of it for the client.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{header, response};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use mediatype::MediaType;

use crate::body::Resumed;

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

/// The data so far: one chunk as it came, more of them in one buffer.
#[derive(Default)]
struct Gathered {
    whole: Bytes,
    growing: BytesMut,
}

impl Gathered {
    fn push(&mut self, chunk: Bytes) {
        if self.len() == 0 {
            self.whole = chunk;
            return;
        }
        if self.growing.is_empty() {
            self.growing.extend_from_slice(&self.whole);
            self.whole = Bytes::new();
        }
        self.growing.extend_from_slice(&chunk);
    }

    fn len(&self) -> usize {
        self.whole.len() + self.growing.len()
    }

    fn whole(&mut self) -> Bytes {
        if !self.growing.is_empty() {
            self.whole = self.growing.split().freeze();
        }
        self.whole.clone()
    }
}

/// Server-sent events may never end, and a client that waits for the first one must get it when it is sent.
fn is_endless(parts: &response::Parts) -> bool {
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| MediaType::parse(value).ok());
    media_type.is_some_and(|media_type| media_type.essence().to_string().eq_ignore_ascii_case("text/event-stream"))
}
