//! Marks rejections that have become responses, so that every outer guard recognises them.

use axum::response::Response;
use http::response::Parts;

/// An extension of a response: it is an answer of a guard or of a step instead of the handler's response. No guard
/// records it, whatever statuses its policy records and whichever keys the two requests have, because a later retry
/// gets another answer.
#[derive(Clone, Copy)]
struct IsRejection;

pub(crate) fn marked(mut response: Response) -> Response {
    response.extensions_mut().insert(IsRejection);
    response
}

/// Marks a rejection for the outer guards, after an inner guard has recognised it in another way.
pub(crate) fn mark(parts: &mut Parts) {
    parts.extensions.insert(IsRejection);
}

pub(crate) fn is_marked(parts: &Parts) -> bool {
    parts.extensions.get::<IsRejection>().is_some()
}
