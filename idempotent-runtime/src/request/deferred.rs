//! Extracts the arguments that [`Guarded`] carries, once it is known whether the handler runs.
//!
//! For a replay and a rejection, the request is dropped unextracted, so no extractor runs and no body is parsed.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;

use crate::policy::Policy;
use crate::policy::values::Reads;
use crate::rejection::mark::marked;
use crate::request::claim_input::{BodyReading, ClaimInput};
use crate::request::context::Execution;
use crate::request::input::{RequestInput, arrive_unkeyed};
use crate::request::request_body::BodyLimit;
use crate::request::response_mark::{without_foreign_headers, without_mark};
use crate::request::upload::Upload;
use crate::sync::{Mutex, lock, unpoisoned};

/// When the arguments are extracted, relative to the claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExtractionTime {
    /// Before the claim. The response of an extractor that fails is sent as it is, and nothing is claimed.
    BeforeClaim,
    /// After the claim: the extractors are part of the guarded run.
    #[default]
    UnderClaim,
    /// After the claim, for a single body extractor of axum. If the body cannot be read, nothing can be claimed, and
    /// the extractor answers.
    PlainBody,
}

/// The future that extracts the arguments of a request into its [`DeferredRequest`].
type Extracting = BoxFuture<'static, Result<(), Response>>;

/// Begins the extraction.
type Extractor = Box<dyn FnOnce(Arc<DeferredRequest>) -> Extracting + Send + Sync>;

/// A request whose extractors have not begun, and the slot for the arguments that they extract. The future of the
/// extractors is large, and a replay needs none.
///
/// It does not depend on the types of the arguments, because it would be compiled for each handler.
pub(crate) struct DeferredRequest {
    waiting: Mutex<Waiting>,
    /// An `Option` of the arguments. It is taken out of its box, which costs less code than to take the box apart.
    arguments: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Whether an extractor may begin a transaction.
const MAY_BEGIN_TRANSACTION: bool = cfg!(feature = "__transactions");
const NOT_BEGUN: &str = "the request is there until its extractors take it";

/// What the extractors need. All is `None` for a handler that is called directly.
#[derive(Default)]
struct Waiting {
    request: Option<Request>,
    extractor: Option<Extractor>,
    /// The data that the guard has read from the request.
    input: Option<RequestInput>,
}

impl DeferredRequest {
    fn new(request: Request, extractor: Extractor) -> Arc<Self> {
        let waiting = Waiting { request: Some(request), extractor: Some(extractor), input: None };
        Arc::new(Self { waiting: Mutex::new(waiting), arguments: Mutex::default() })
    }

    /// Defers the extraction of `B` from this request.
    pub(super) fn of<S, B, M>(request: Request, state: S) -> Arc<Self>
    where
        B: FromRequest<S, M> + Send + 'static,
        S: Send + Sync + 'static,
    {
        // Compiled for each handler, so it avoids closures and `?`.
        let extractor = Box::new(move |deferred: Arc<Self>| -> Extracting {
            Box::pin(async move {
                match B::from_request(deferred.take_request(), &state).await {
                    Ok(arguments) => {
                        deferred.set(Box::new(Some(arguments)));
                        Ok(())
                    }
                    Err(rejection) => Err(rejection.into_response()),
                }
            })
        });
        Self::new(request, extractor)
    }

    /// Reads the data that the guard needs from the request, unless only the guard knows what it needs.
    pub(super) async fn read(mut self: Arc<Self>, reads: Option<Reads>) -> Arc<Self> {
        let Some(reads) = reads else { return self };
        let deferred = Arc::get_mut(&mut self).expect("it is new");
        let Waiting { request, input, .. } = unpoisoned(deferred.waiting.get_mut());
        RequestInput::read(input, request.as_mut().expect(NOT_BEGUN), reads).await;
        self
    }

    /// Takes the data that the guard has read from the request, and returns whether this includes the body. Unless the
    /// extractors are axum's own, one of them may begin a transaction, which needs an execution even if the request has
    /// no key.
    ///
    /// # Panics
    ///
    /// If the request is not there: without its data, the handler would run unguarded.
    pub(super) fn take_input(&self, policy: &Policy, time: ExtractionTime) -> (RequestInput, bool) {
        let read = lock(&self.waiting).input.take();
        let is_read = read.is_some();
        let mut input = read.unwrap_or_else(|| {
            // Not under the lock, because a function of the application may name the caller.
            let mut request = self.lend();
            let input = RequestInput::of_handler(&mut request, policy);
            self.put_back(request);
            input
        });
        if MAY_BEGIN_TRANSACTION && time != ExtractionTime::PlainBody && input.execution.is_none() {
            let request = self.lend();
            let execution = Execution::of_guard(request.extensions());
            arrive_unkeyed(&execution, input.registry.as_ref(), &request);
            input.execution = Some(execution);
            self.put_back(request);
        }
        (input, is_read)
    }

    /// Reads the body of the request before its extraction begins.
    pub(super) fn read_body(self: Arc<Self>, reading: BodyReading) -> BoxFuture<'static, ClaimInput> {
        Box::pin(async move {
            let mut request = self.lend();
            let claim_input = reading.read(&mut request, BodyLimit::OfRoute).await;
            self.put_back(request);
            claim_input
        })
    }

    fn lend(&self) -> Request {
        lock(&self.waiting).request.take().expect(NOT_BEGUN)
    }

    fn put_back(&self, request: Request) {
        lock(&self.waiting).request = Some(request);
    }

    /// Begins the extraction. From now on, the request is inside of the guard of this execution. Returns `None` if the
    /// extraction has already begun, or if the handler is called directly.
    fn extract(self: Arc<Self>, execution: Option<&Arc<Execution>>) -> Option<Extracting> {
        let mut waiting = lock(&self.waiting);
        let extractor = waiting.extractor.take()?;
        if let (Some(request), Some(execution)) = (&mut waiting.request, execution) {
            execution.enter(request.extensions_mut());
        }
        drop(waiting);
        Some(extractor(self))
    }

    fn take_request(&self) -> Request {
        lock(&self.waiting).request.take().expect(NOT_BEGUN)
    }

    fn set(&self, arguments: Box<dyn Any + Send>) {
        *lock(&self.arguments) = Some(arguments);
    }

    fn take_arguments(&self) -> Box<dyn Any + Send> {
        lock(&self.arguments).take().expect("arguments are extracted before the handler takes them")
    }
}

/// The arguments that a handler takes.
pub struct Extracted<B> {
    from: Arc<DeferredRequest>,
    arguments: PhantomData<fn() -> B>,
}

impl<B: 'static> Extracted<B> {
    /// Takes the arguments.
    ///
    /// # Panics
    ///
    /// If they are not extracted yet. The engine does not let the handler take them before that.
    #[must_use]
    pub fn take(self) -> B {
        match self.from.take_arguments().downcast_mut::<Option<B>>().and_then(Option::take) {
            Some(arguments) => arguments,
            None => unreachable!("the slot has the type of the arguments"),
        }
    }

    pub(super) fn given(arguments: B) -> Self
    where
        B: Send,
    {
        let from = Arc::new(DeferredRequest { waiting: Mutex::default(), arguments: Mutex::default() });
        from.set(Box::new(Some(arguments)));
        Self::of(from)
    }

    /// Returns the arguments that will be extracted from this request.
    pub(super) fn of(from: Arc<DeferredRequest>) -> Self {
        Self { from, arguments: PhantomData }
    }
}

impl<B: fmt::Debug + 'static> fmt::Debug for Extracted<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match lock(&self.from.arguments).as_ref().and_then(|arguments| arguments.downcast_ref::<Option<B>>()) {
            Some(Some(arguments)) => arguments.fmt(f),
            _ => f.write_str("<not extracted yet>"),
        }
    }
}

/// The extraction of one request's arguments.
#[derive(Default)]
pub(super) struct Extraction {
    arguments: Arguments,
    time: ExtractionTime,
    is_before_claim: bool,
    /// The body that the extractors read, if it was not read before.
    upload: Option<Upload>,
    /// The execution of the guard, if there is one.
    execution: Option<Arc<Execution>>,
}

/// How far the arguments are extracted.
#[derive(Default)]
enum Arguments {
    Unextracted(Arc<DeferredRequest>),
    Extracting(Extracting),
    #[default]
    Extracted,
}

impl Arguments {
    fn poll(&mut self, execution: Option<&Arc<Execution>>, cx: &mut Context<'_>) -> Poll<Result<(), Response>> {
        if let Self::Unextracted(unextracted) = self {
            *self = Arc::clone(unextracted).extract(execution).map_or(Self::Extracted, Self::Extracting);
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

impl Extraction {
    pub(super) fn new(
        unextracted: Arc<DeferredRequest>,
        time: ExtractionTime,
        execution: Option<Arc<Execution>>,
        claim_input: &ClaimInput,
    ) -> Self {
        let arguments = Arguments::Unextracted(unextracted);
        let mut extraction = Self { arguments, time, is_before_claim: false, upload: None, execution };
        extraction.note_body(claim_input);
        extraction
    }

    /// Notes how far the body has been read.
    pub(super) fn note_body(&mut self, claim_input: &ClaimInput) {
        self.is_before_claim = match self.time {
            ExtractionTime::BeforeClaim => true,
            ExtractionTime::UnderClaim => false,
            ExtractionTime::PlainBody => claim_input.has_broken_body(),
        };
        self.upload.clone_from(&claim_input.upload);
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
