//! Detects a request without a key that has reached a router's fallback, which is not a route.

use std::any::TypeId;

use axum::extract::{MatchedPath, OriginalUri};
use axum::routing::Route;
use http::Extensions;

/// Returns whether the service beneath, of type `S`, handles requests that match no route of a router.
///
/// `Router::layer` wraps each of the router's own services, which are `Route`s. A router that has matched a request
/// against its routes leaves `OriginalUri` in the request, and also `MatchedPath` if a route matches. A service of any
/// other type may be a router itself, or may do work: nothing is known about such a service.
pub(super) fn is_of_fallback<S: 'static>(extensions: &Extensions) -> bool {
    TypeId::of::<S>() == TypeId::of::<Route>()
        && extensions.get::<OriginalUri>().is_some()
        && extensions.get::<MatchedPath>().is_none()
}
