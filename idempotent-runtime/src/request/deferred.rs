//! Extracts the arguments that [`Guarded`] carries, once it is known whether the handler runs.
//!
//! For a replay and a rejection, the extraction is dropped unpolled, so no extractor runs and no body is parsed.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::response::Response;
use futures_util::future::BoxFuture;

use crate::rejection::mark::marked;
use crate::request::context::Execution;
use crate::request::response_mark::{without_foreign_headers, without_mark};
use crate::request::upload::Upload;
use crate::sync::{Mutex, lock, unpoisoned};

/// When the arguments are extracted, relative to the claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extraction {
    /// Before the claim. The response of an extractor that fails is sent as it is, and nothing is claimed.
    BeforeClaim,
    /// After the claim: the extractors are part of the guarded run.
    UnderClaim,
    /// After the claim, for a single body extractor of axum. If the body cannot be read, nothing can be claimed, and
    /// the extractor answers.
    PlainBody,
}

/// The future that reads the arguments into their [`Extracted`].
pub(super) type Extracting = BoxFuture<'static, Result<(), Response>>;

/// The slot from which a handler takes its arguments.
pub struct Extracted<B>(Arc<Mutex<Option<B>>>);

impl<B> Extracted<B> {
    /// Takes the arguments.
    ///
    /// # Panics
    ///
    /// If they are not extracted yet. The engine does not let the handler take them before that.
    #[must_use]
    pub fn take(self) -> B {
        let arguments = match Arc::try_unwrap(self.0) {
            Ok(alone) => unpoisoned(alone.into_inner()),
            Err(shared) => lock(&shared).take(),
        };
        arguments.expect("arguments are extracted before the handler takes them")
    }

    pub(super) fn given(arguments: B) -> Self {
        Self(Arc::new(Mutex::new(Some(arguments))))
    }

    /// Returns two handles to one empty slot: the first for writing, the second for reading.
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
    /// `None` when the extraction has ended.
    extracting: Option<Extracting>,
    is_before_claim: bool,
    /// The body that the extractors read, if it was not read before.
    upload: Option<Upload>,
    /// The execution of the guard, if there is one.
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

    /// Extracts the arguments that belong before the claim. Returns the response of an extractor that fails. Is ready
    /// at once if there are no such arguments.
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

    /// Extracts the arguments that belong after the claim. Returns the response of an extractor that fails.
    pub(super) fn poll_under_claim(&mut self, cx: &mut Context<'_>) -> Poll<Option<Response>> {
        let Some(extracting) = &mut self.extracting else { return Poll::Ready(None) };
        self.execution.iter().for_each(|execution| execution.set_extracting(true));
        let extracted = ready!(extracting.as_mut().poll(cx));
        self.execution.iter().for_each(|execution| execution.set_extracting(false));
        self.extracting = None;
        // The extractor may have forwarded the request to another handler, whose guard marked the response. The same
        // can happen to the response of the handler itself.
        let rejection = extracted.err().map(without_mark);
        // A retry may send the whole body, so no guard records the response of an extractor that got only a part.
        let is_cut_off = self.upload.take().is_some_and(|upload| upload.has_broken_off());
        Poll::Ready(if is_cut_off { rejection.map(marked) } else { rejection })
    }
}
