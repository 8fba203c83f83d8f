//! Detects a request without a key that has reached a router's fallback, which is not a route.

use std::any::TypeId;

use axum::extract::{MatchedPath, OriginalUri};
use axum::routing::Route;
use http::Extensions;

/// Returns whether the service beneath, of type `S`, handles requests that match no route of a router.
///
/// `Router::layer` wraps each of the router's own services, which are `Route`s. A router that has looked for a route
/// leaves `OriginalUri`, and `MatchedPath` if it found one. A service of any other type may be a router itself, or may
/// do work: nothing is known about it.
pub(super) fn is_of_fallback<S: 'static>(extensions: &Extensions) -> bool {
    TypeId::of::<S>() == TypeId::of::<Route>()
        && extensions.get::<OriginalUri>().is_some()
        && extensions.get::<MatchedPath>().is_none()
}
