//! The mark on a rejection that has become a response, by which every guard around recognises it.

use axum::response::Response;
use http::response::Parts;

/// An answer of a guard, or of a step, in place of the handler's response. No guard records it, whatever its policy says of the
/// status, and whatever the keys of the two requests are: after a while, a retry gets another answer.
#[derive(Clone, Copy)]
struct IsRejection;

pub(crate) fn marked(mut response: Response) -> Response {
    response.extensions_mut().insert(IsRejection);
    response
}

/// Marks what an inner guard has recognised by other means, for the guards around it.
pub(crate) fn mark(parts: &mut Parts) {
    parts.extensions.insert(IsRejection);
}

pub(crate) fn is_marked(parts: &Parts) -> bool {
    parts.extensions.get::<IsRejection>().is_some()
}
