//! Marks on a response, by which guards that are nested tell each other who answers for it.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderMap, HeaderValue};

use crate::record::headers::{RECORDED, REPLAYED};
use crate::request::context::Execution;

/// What a layer learns from a response of the service beneath it, before it decides what to record.
#[derive(Clone)]
pub(super) enum Mark {
    Failed,
    /// The guard that answers for the response.
    OfAnotherGuard(Arc<Execution>),
    /// The guard under whose claim the first run executes.
    SecondRun(Arc<Execution>),
    /// The service beneath a layer took no request.
    NotCalled,
}

/// On a response: a guard says whether it is a replay, and whether it is recorded.
#[derive(Clone, Copy)]
struct IsTold;

/// A response that is never recorded and never sent: the layer has the error that it replaces.
pub(crate) fn failed() -> Response {
    let mut response = Response::default();
    response.extensions_mut().insert(Mark::Failed);
    response
}

/// The same for a service that has not become ready: nothing has run.
pub(crate) fn not_called() -> Response {
    let mut response = Response::default();
    response.extensions_mut().insert(Mark::NotCalled);
    response
}

/// A response that this guard, beneath a layer, answers for, because it has recorded it or rejected the request: the layer records
/// nothing. The mark is on the response, since what is made of the request beneath a layer need not be what the layer sends.
pub(crate) fn of_another_guard(mut response: Response, answering: &Arc<Execution>) -> Response {
    if is_any_second_run(&response) {
        return response;
    }
    response.extensions_mut().insert(Mark::OfAnotherGuard(Arc::clone(answering)));
    response
}

/// Whether a guard beneath this one answers for the response. The mark on a response to another request does not count: a
/// middleware may have stored that response, or have sent that request.
pub(crate) fn is_of_another_guard(response: &Response, execution: &Arc<Execution>) -> bool {
    matches!(response.extensions().get(), Some(Mark::OfAnotherGuard(answering)) if answering.answers_for(execution))
}

/// A rejection instead of a second execution under one claim. No guard around records it, because none of them knows what the
/// first execution has done.
pub(super) fn of_second_run(mut response: Response, covering: &Arc<Execution>) -> Response {
    response.extensions_mut().insert(Mark::SecondRun(Arc::clone(covering)));
    response
}

fn is_any_second_run(response: &Response) -> bool {
    matches!(response.extensions().get(), Some(Mark::SecondRun(_)))
}

/// The response to a first request whose retries do not get it, at least not yet.
pub(super) fn without_record(mut response: Response) -> Response {
    response.headers_mut().insert(&RECORDED, HeaderValue::from_static("false"));
    told(response)
}

/// A response whose headers about replay and record are a guard's.
pub(super) fn told(mut response: Response) -> Response {
    response.extensions_mut().insert(IsTold);
    response
}

/// A response that no guard here answers for: without a guard beneath, its headers about replay and record are none.
pub(crate) fn without_foreign_headers(mut response: Response) -> Response {
    if response.extensions().get::<IsTold>().is_none() {
        remove_headers(&mut response);
    }
    response
}

fn remove_headers(response: &mut Response) {
    remove_from(response.headers_mut());
}

/// Removes from headers or trailers what only a guard may say about replay and record.
pub(super) fn remove_from(lines: &mut HeaderMap) {
    for name in [&REPLAYED, &RECORDED] {
        lines.remove(name);
    }
}

/// The response without the marks of other guards and without their headers: the caller's guard answers for it.
pub(crate) fn without_mark(mut response: Response) -> Response {
    if !is_any_second_run(&response) {
        response.extensions_mut().remove::<Mark>();
    }
    response.extensions_mut().remove::<IsTold>();
    remove_headers(&mut response);
    response
}
