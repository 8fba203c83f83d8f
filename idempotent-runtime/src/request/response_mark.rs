//! Marks on a response. Nested guards use them to tell each other which guard answers for the response.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::record::headers::{RECORDED, REPLAYED};
use crate::request::context::Execution;

/// Tells a layer about a response of the service beneath it, before the layer decides what to record.
#[derive(Clone)]
pub(super) enum Mark {
    Failed,
    /// The guard that answers for the response.
    OfAnotherGuard(Arc<Execution>),
    /// The guard under whose claim the first run executes.
    SecondRun(Arc<Execution>),
    /// The service beneath a layer accepted no request.
    NotCalled,
}

/// An extension of a response: a guard has set its headers about replay and record.
#[derive(Clone, Copy)]
struct IsTold;

/// Returns a response that is never recorded and never sent: the layer returns an error in its place.
pub(crate) fn failed() -> Response {
    let mut response = Response::default();
    response.extensions_mut().insert(Mark::Failed);
    response
}

/// Like [`failed`], for a service that did not become ready, so that nothing has run.
pub(crate) fn not_called() -> Response {
    let mut response = Response::default();
    response.extensions_mut().insert(Mark::NotCalled);
    response
}

/// Marks a response for which this guard beneath a layer answers, because the guard has recorded it or rejected the
/// request. The layer then records nothing. The mark is on the response and not on the request, because code between
/// the guard and the layer may send another response.
pub(crate) fn of_another_guard(mut response: Response, answering: &Arc<Execution>) -> Response {
    if is_any_second_run(&response) {
        return response;
    }
    response.extensions_mut().insert(Mark::OfAnotherGuard(Arc::clone(answering)));
    response
}

/// Returns whether a guard beneath this one answers for the response. The mark on a response to another request does
/// not count: a middleware may have stored that response, or have sent that request.
pub(crate) fn is_of_another_guard(response: &Response, execution: &Arc<Execution>) -> bool {
    matches!(response.extensions().get(), Some(Mark::OfAnotherGuard(answering)) if answering.answers_for(execution))
}

/// Marks a rejection that replaces a second execution under one claim. No guard around it records the rejection,
/// because none of them knows what the first execution has done.
pub(super) fn of_second_run(mut response: Response, covering: &Arc<Execution>) -> Response {
    response.extensions_mut().insert(Mark::SecondRun(Arc::clone(covering)));
    response
}

fn is_any_second_run(response: &Response) -> bool {
    matches!(response.extensions().get(), Some(Mark::SecondRun(_)))
}

/// Marks the response to a first request whose retries do not get this response, at least not yet.
pub(super) fn without_record(mut response: Response) -> Response {
    response.headers_mut().insert(&RECORDED, HeaderValue::from_static("false"));
    told(response)
}

/// Marks a response whose headers about replay and record were set by a guard.
pub(super) fn told(mut response: Response) -> Response {
    response.extensions_mut().insert(IsTold);
    response
}

/// Returns a response for which no guard here answers. If no guard beneath has set its headers about replay and record,
/// they are removed.
pub(crate) fn without_foreign_headers(mut response: Response) -> Response {
    if response.extensions().get::<IsTold>().is_none() {
        remove_headers(&mut response);
    }
    response
}

fn remove_headers(response: &mut Response) {
    remove_from(response.headers_mut());
}

/// Removes the headers or trailers that only a guard may set: those about replay and record.
pub(super) fn remove_from(lines: &mut HeaderMap) {
    let is_guards = |name: &HeaderName| [&REPLAYED, &RECORDED].contains(&name);
    // Most responses have few lines and none of these: to compare them costs less than to hash the names.
    if lines.keys().any(is_guards) {
        for name in [&REPLAYED, &RECORDED] {
            lines.remove(name);
        }
    }
}

/// Removes the marks and headers of other guards: the caller's guard answers for the response.
pub(crate) fn without_mark(mut response: Response) -> Response {
    if !response.extensions().is_empty() {
        if !is_any_second_run(&response) {
            response.extensions_mut().remove::<Mark>();
        }
        response.extensions_mut().remove::<IsTold>();
    }
    remove_headers(&mut response);
    response
}
