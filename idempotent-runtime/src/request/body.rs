//! Bodies that were partly read: a later reader still gets every byte.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::BoxError;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};

/// A body that yields the frames that were read already, and then the rest.
pub(crate) struct Resumed {
    read: VecDeque<Result<Frame<Bytes>, BoxError>>,
    rest: Body,
}

impl Resumed {
    pub(crate) fn new(read: impl IntoIterator<Item = Result<Frame<Bytes>, BoxError>>, rest: Body) -> Self {
        Self { read: read.into_iter().collect(), rest }
    }
}

impl http_body::Body for Resumed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(frame) = self.read.pop_front() {
            return Poll::Ready(Some(frame));
        }
        Pin::new(&mut self.rest).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let data = || self.read.iter().flatten().filter_map(Frame::data_ref);
        let read: u64 = data().map(|data| data.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(read + rest.lower());
        // A server stops reading after the length that the hint states, and would not reach an error or trailers after
        // the data.
        let is_data_alone = data().count() == self.read.len();
        if let Some(upper) = rest.upper().filter(|_| is_data_alone) {
            hint.set_upper(read + upper);
        }
        hint
    }
}

/// The data that was read so far: a single chunk is kept as it is, several chunks are joined in one buffer.
#[derive(Default)]
pub(crate) struct Gathered {
    whole: Bytes,
    growing: BytesMut,
}

impl Gathered {
    pub(crate) fn push(&mut self, chunk: Bytes) {
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

    pub(crate) fn len(&self) -> usize {
        self.whole.len() + self.growing.len()
    }

    pub(crate) fn whole(&mut self) -> Bytes {
        if !self.growing.is_empty() {
            self.whole = self.growing.split().freeze();
        }
        self.whole.clone()
    }
}
