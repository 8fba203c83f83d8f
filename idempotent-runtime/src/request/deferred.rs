//! The extraction of the arguments that [`Guarded`] carries: it is deferred until it is known whether the handler runs.
//!
//! A replay and a rejection drop it unpolled, so that no extractor runs and no body is parsed.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::response::Response;
use futures_util::future::BoxFuture;

use crate::rejection::mark::marked;
use crate::request::context::Execution;
use crate::request::response_mark::{without_foreign_headers, without_mark};
use crate::request::upload::Upload;
use crate::sync::{Mutex, lock};

/// When the arguments are extracted, relative to the claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extraction {
    /// A failing extractor answers by itself, and nothing is claimed.
    BeforeClaim,
    /// The extractors are a part of the guarded run.
    UnderClaim,
    /// The same, for one body extractor of axum's. If the body cannot be read, nothing can be claimed either, and the extractor
    /// answers.
    PlainBody,
}

/// Reads the arguments into their [`Extracted`].
pub(super) type Extracting = BoxFuture<'static, Result<(), Response>>;

/// Where a handler finds its arguments.
pub struct Extracted<B>(Arc<Mutex<Option<B>>>);

impl<B> Extracted<B> {
    /// The arguments.
    ///
    /// # Panics
    ///
    /// Before they are extracted. The engine polls the handler to this point when they are.
    #[must_use]
    pub fn take(self) -> B {
        lock(&self.0).take().expect("arguments are extracted before the handler takes them")
    }

    pub(super) fn given(arguments: B) -> Self {
        Self(Arc::new(Mutex::new(Some(arguments))))
    }

    /// Where there is nothing yet: the one to write to, and the one to read from.
    pub(super) fn pair() -> (Self, Self) {
        let slot = Arc::new(Mutex::new(None));
        (Self(Arc::clone(&slot)), Self(slot))
    }

    pub(super) fn set(self, arguments: B) {
        *lock(&self.0) = Some(arguments);
    }
}

impl<B: fmt::Debug> fmt::Debug for Extracted<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*lock(&self.0) {
            Some(arguments) => arguments.fmt(f),
            None => f.write_str("<not extracted yet>"),
        }
    }
}

/// The extraction of one request's arguments.
#[derive(Default)]
pub(super) struct Deferred {
    /// `None` as soon as it has ended.
    extracting: Option<Extracting>,
    is_before_claim: bool,
    /// What the extractors read, if it was not read before.
    upload: Option<Upload>,
    /// That of the guard, if there is one.
    execution: Option<Arc<Execution>>,
}

impl Deferred {
    pub(super) fn new(
        extracting: Option<Extracting>,
        is_before_claim: bool,
        upload: Option<Upload>,
        execution: Option<Arc<Execution>>,
    ) -> Self {
        Self { extracting, is_before_claim, upload, execution }
    }

    /// Before the claim: ready if there is nothing to extract yet, with the response of an extractor that fails.
    pub(super) fn poll_before_claim(&mut self, cx: &mut Context<'_>) -> Poll<Option<Response>> {
        match &mut self.extracting {
            Some(extracting) if self.is_before_claim => {
                let extracted = ready!(extracting.as_mut().poll(cx));
                self.extracting = None;
                Poll::Ready(extracted.err().map(without_foreign_headers))
            }
            _ => Poll::Ready(None),
        }
    }

    /// Under the claim: ready as soon as the handler has its arguments, with the response of an extractor that fails.
    pub(super) fn poll_under_claim(&mut self, cx: &mut Context<'_>) -> Poll<Option<Response>> {
        let Some(extracting) = &mut self.extracting else { return Poll::Ready(None) };
        self.execution.iter().for_each(|execution| execution.set_extracting(true));
        let extracted = ready!(extracting.as_mut().poll(cx));
        self.execution.iter().for_each(|execution| execution.set_extracting(false));
        self.extracting = None;
        // It may be the response of a handler to which the extractor forwarded the request, as that of the handler itself may be.
        let rejection = extracted.err().map(without_mark);
        // A retry may send the whole body: no guard records what an extractor says of a part.
        let is_cut_off = self.upload.take().is_some_and(|upload| upload.has_broken_off());
        Poll::Ready(if is_cut_off { rejection.map(marked) } else { rejection })
    }
}
