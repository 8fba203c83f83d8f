//! The wrapper of a handler's last argument. It takes the request for the guard and for the argument's own extractor.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::{FromRequest, Request};
use pin_project_lite::pin_project;

use crate::policy::values::Reads;
use crate::request::deferred::{DeferredRequest, Extracted};

/// The last argument of an annotated handler, together with the data of the request that the guard needs. Its extractor
/// runs when it is known whether the handler runs: see the guide's page [`extraction`](crate::guide::extraction).
///
/// The attribute writes this type into the handler's signature. A unit test that calls the handler passes `.into()`, or
/// `().into()` if the handler has no arguments. If `claim_after` leaves several arguments after the claim, they are one
/// tuple: `(row, order).into()`. Such a call runs unguarded.
///
/// # Examples
///
/// ```
/// use axum::Json;
/// use idempotent_runtime::idempotent;
///
/// #[idempotent]
/// async fn double(Json(number): Json<u32>) -> String {
///     (number * 2).to_string()
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let response = double(Json(21).into()).await;
/// assert_eq!(response.status(), 200);
/// # });
/// ```
pub struct Guarded<B, M = Buffered> {
    pub(crate) arguments: Extracted<B>,
    /// `None` for a direct call.
    pub(crate) request: Option<Arc<DeferredRequest>>,
    mode: PhantomData<fn() -> M>,
}

/// The body is part of the fingerprint: it is read before the inner extractor gets it.
#[derive(Debug)]
pub enum Buffered {}

/// Like [`Buffered`], but a JSON body is part of the fingerprint in its canonical form.
#[derive(Debug)]
pub enum BufferedJson {}

/// The value of an expression replaces the body in the fingerprint, and the target is part of it too. The body reaches
/// the inner extractor unread.
#[derive(Debug)]
pub enum Targeted {}

/// Nothing of the request is part of the fingerprint. The request reaches the inner extractor unread.
#[derive(Debug)]
pub enum Streamed {}

/// The policy has its own rules for keys or methods. So the guard reads the request: only its policy says whether the
/// request has a key, and whether it is guarded. The body of a request that is not guarded is not read.
#[derive(Debug)]
pub enum ReadByGuard {}

/// Axum's marker type for the extractors that [`Guarded`] wraps. It contains the inner extractor's own marker.
#[derive(Debug)]
pub struct ViaGuarded<M>(PhantomData<M>);

/// Does not show the request, because its headers can contain credentials.
impl<B: fmt::Debug + 'static, M> fmt::Debug for Guarded<B, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("arguments", &self.arguments).finish_non_exhaustive()
    }
}

impl<B: Send + 'static, M> From<B> for Guarded<B, M> {
    fn from(arguments: B) -> Self {
        Self { arguments: Extracted::given(arguments), request: None, mode: PhantomData }
    }
}

impl<S, B, M, Mode> FromRequest<S, ViaGuarded<M>> for Guarded<B, Mode>
where
    B: FromRequest<S, M> + Send + 'static,
    M: 'static,
    S: Clone + Send + Sync + 'static,
    Mode: Reading,
{
    type Rejection = Infallible;

    fn from_request(request: Request, state: &S) -> impl Future<Output = Result<Self, Infallible>> + Send {
        // On the heap first, so that axum's future of the handler does not contain the request several times: the
        // allocator is slow with blocks of more than a kilobyte.
        let request = DeferredRequest::of::<S, B, M>(request, state.clone());
        ReadRequest { reading: request.read(Mode::READS), guarded: PhantomData }
    }
}

pin_project! {
    /// Reads a request. It is compiled for each handler, and costs less code than an `async` block.
    struct ReadRequest<F, G> {
        #[pin]
        reading: F,
        guarded: PhantomData<fn() -> G>,
    }
}

impl<F, B, M> Future for ReadRequest<F, Guarded<B, M>>
where
    F: Future<Output = Arc<DeferredRequest>>,
    B: 'static,
{
    type Output = Result<Guarded<B, M>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().reading.poll(cx) {
            Poll::Ready(request) => Poll::Ready(Ok(Guarded::of(request))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<B: 'static, M> Guarded<B, M> {
    fn of(request: Arc<DeferredRequest>) -> Self {
        Self { arguments: Extracted::of(Arc::clone(&request)), request: Some(request), mode: PhantomData }
    }
}

/// Says which part of a request is read before the inner extractor gets it. `None` means that the guard reads the
/// request when it knows its policy.
pub trait Reading: sealed::Sealed {
    #[doc(hidden)]
    const READS: Option<Reads>;
}

pub(crate) mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Buffered {}
    impl Sealed for super::BufferedJson {}
    impl Sealed for super::Targeted {}
    impl Sealed for super::Streamed {}
    impl Sealed for super::ReadByGuard {}
}

impl Reading for Buffered {
    const READS: Option<Reads> = Some(Reads::Body);
}

impl Reading for BufferedJson {
    const READS: Option<Reads> = Some(Reads::Json);
}

impl Reading for Targeted {
    const READS: Option<Reads> = Some(Reads::Target);
}

impl Reading for Streamed {
    const READS: Option<Reads> = Some(Reads::Nothing);
}

impl Reading for ReadByGuard {
    const READS: Option<Reads> = None;
}
