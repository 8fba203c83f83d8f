//! Extracts the arguments that [`Guarded`] carries, once it is known whether the handler runs.
//!
//! For a replay and a rejection, the request is dropped unextracted, so no extractor runs and no body is parsed.

use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;

use crate::rejection::mark::marked;
use crate::request::context::Execution;
use crate::request::input::RequestInput;
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

/// The future that reads the arguments into their slot.
type Extracting = BoxFuture<'static, Result<(), Response>>;

/// A request whose extractors have not begun. Their future is large, and a replay needs none.
pub(crate) trait Unextracted: Send + Sync {
    /// Takes the data that the guard has read from the request.
    fn take_input(&self) -> Option<RequestInput>;

    /// Begins the extraction. From now on, the request is inside of the guard of this execution.
    fn extract(self: Arc<Self>, execution: Option<&Arc<Execution>>) -> Extracting;
}

/// The slot from which a handler takes its arguments.
trait Slot<B>: Send + Sync {
    fn arguments(&self) -> &Mutex<Option<B>>;
}

/// A request, and the slot for the arguments that are extracted from it: one allocation for both.
pub(super) struct DeferredRequest<S, B, M> {
    request: Mutex<Waiting<S>>,
    arguments: Mutex<Option<B>>,
    /// Axum's marker of the extractor.
    marker: PhantomData<fn() -> M>,
}

/// A request that waits for its extractors.
struct Waiting<S> {
    /// `None` as soon as the extractors have the request.
    request: Option<(Request, S)>,
    input: Option<RequestInput>,
}

impl<S, B, M> DeferredRequest<S, B, M> {
    pub(super) fn new(request: Request, state: S) -> Self {
        let request = Mutex::new(Waiting { request: Some((request, state)), input: None });
        Self { request, arguments: Mutex::new(None), marker: PhantomData }
    }

    /// Returns the request, and the place for the data that the guard reads from it.
    pub(super) fn unread(&mut self) -> Option<(&mut Request, &mut Option<RequestInput>)> {
        let Waiting { request, input } = unpoisoned(self.request.get_mut());
        request.as_mut().map(|(request, _)| (request, input))
    }
}

impl<S, B, M> Slot<B> for DeferredRequest<S, B, M>
where
    S: Send + Sync,
    B: Send,
{
    fn arguments(&self) -> &Mutex<Option<B>> {
        &self.arguments
    }
}

impl<S, B, M> Unextracted for DeferredRequest<S, B, M>
where
    B: FromRequest<S, M> + Send + 'static,
    M: 'static,
    S: Send + Sync + 'static,
{
    fn take_input(&self) -> Option<RequestInput> {
        lock(&self.request).input.take()
    }

    // Compiled for each handler, so it avoids closures and `?`.
    fn extract(self: Arc<Self>, execution: Option<&Arc<Execution>>) -> Extracting {
        if let (Some((request, _)), Some(execution)) = (&mut lock(&self.request).request, execution) {
            execution.enter(request.extensions_mut());
        }
        Box::pin(async move {
            let waiting = lock(&self.request).request.take();
            let (request, state) = waiting.expect("a request is extracted once");
            match B::from_request(request, &state).await {
                Ok(arguments) => {
                    *lock(&self.arguments) = Some(arguments);
                    Ok(())
                }
                Err(rejection) => Err(rejection.into_response()),
            }
        })
    }
}

/// The arguments that a handler takes.
pub struct Extracted<B>(Source<B>);

enum Source<B> {
    Request(Arc<dyn Slot<B>>),
    /// Of a handler that is called directly. The lock makes the arguments `Sync`.
    Given(Box<Mutex<B>>),
}

impl<B> Extracted<B> {
    /// Takes the arguments.
    ///
    /// # Panics
    ///
    /// If they are not extracted yet. The engine does not let the handler take them before that.
    #[must_use]
    pub fn take(self) -> B {
        match self.0 {
            Source::Request(slot) => {
                lock(slot.arguments()).take().expect("arguments are extracted before the handler takes them")
            }
            Source::Given(arguments) => unpoisoned(arguments.into_inner()),
        }
    }

    pub(super) fn given(arguments: B) -> Self {
        Self(Source::Given(Box::new(Mutex::new(arguments))))
    }
}

impl<B: Send + 'static> Extracted<B> {
    /// Returns the arguments that will be extracted from this request.
    pub(super) fn of<S, M>(request: &Arc<DeferredRequest<S, B, M>>) -> Self
    where
        S: Send + Sync + 'static,
        M: 'static,
    {
        Self(Source::Request(Arc::<DeferredRequest<S, B, M>>::clone(request)))
    }
}

impl<B: fmt::Debug> fmt::Debug for Extracted<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Request(slot) => match &*lock(slot.arguments()) {
                Some(arguments) => arguments.fmt(f),
                None => f.write_str("<not extracted yet>"),
            },
            Source::Given(arguments) => lock(arguments).fmt(f),
        }
    }
}

/// The extraction of one request's arguments.
#[derive(Default)]
pub(super) struct Deferred {
    arguments: Arguments,
    is_before_claim: bool,
    /// The body that the extractors read, if it was not read before.
    upload: Option<Upload>,
    /// The execution of the guard, if there is one.
    execution: Option<Arc<Execution>>,
}

/// How far the arguments are extracted.
#[derive(Default)]
enum Arguments {
    Unextracted(Arc<dyn Unextracted>),
    Extracting(Extracting),
    #[default]
    Extracted,
}

impl Arguments {
    fn poll(&mut self, execution: Option<&Arc<Execution>>, cx: &mut Context<'_>) -> Poll<Result<(), Response>> {
        if let Self::Unextracted(_) = self
            && let Self::Unextracted(unextracted) = mem::take(self)
        {
            *self = Self::Extracting(unextracted.extract(execution));
        }
        let Self::Extracting(extracting) = self else { return Poll::Ready(Ok(())) };
        let extracted = ready!(extracting.as_mut().poll(cx));
        *self = Self::Extracted;
        Poll::Ready(extracted)
    }

    fn are_extracted(&self) -> bool {
        matches!(self, Self::Extracted)
    }
}

impl Deferred {
    pub(super) fn new(
        unextracted: Option<Arc<dyn Unextracted>>,
        is_before_claim: bool,
        upload: Option<Upload>,
        execution: Option<Arc<Execution>>,
    ) -> Self {
        let arguments = unextracted.map_or(Arguments::Extracted, Arguments::Unextracted);
        Self { arguments, is_before_claim, upload, execution }
    }

    /// Extracts the arguments that belong before the claim. Returns the response of an extractor that fails. Is ready
    /// at once if there are no such arguments.
    pub(super) fn poll_before_claim(&mut self, cx: &mut Context<'_>) -> Poll<Option<Response>> {
        if !self.is_before_claim || self.arguments.are_extracted() {
            return Poll::Ready(None);
        }
        let extracted = ready!(self.arguments.poll(self.execution.as_ref(), cx));
        Poll::Ready(extracted.err().map(without_foreign_headers))
    }

    /// Extracts the arguments that belong after the claim. Returns the response of an extractor that fails.
    pub(super) fn poll_under_claim(&mut self, cx: &mut Context<'_>) -> Poll<Option<Response>> {
        if self.arguments.are_extracted() {
            return Poll::Ready(None);
        }
        self.execution.iter().for_each(|execution| execution.set_extracting(true));
        let extracted = ready!(self.arguments.poll(self.execution.as_ref(), cx));
        self.execution.iter().for_each(|execution| execution.set_extracting(false));
        // The extractor may have forwarded the request to another handler, whose guard marked the response. The same
        // can happen to the response of the handler itself.
        let rejection = extracted.err().map(without_mark);
        // A retry may send the whole body, so no guard records the response of an extractor that got only a part.
        let is_cut_off = self.upload.take().is_some_and(|upload| upload.has_broken_off());
        Poll::Ready(if is_cut_off { rejection.map(marked) } else { rejection })
    }
}
