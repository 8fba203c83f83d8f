//! Whether a request without a key has come to a router's fallback, which is no route.

use std::any::TypeId;

use axum::extract::{MatchedPath, OriginalUri};
use axum::routing::Route;
use http::Extensions;

/// Whether the service beneath, of type `S`, is what a router does with a request that matches no route.
///
/// `Router::layer` wraps each of the router's own services, which are `Route`s. A router that has looked for a route leaves
/// `OriginalUri`, and `MatchedPath` if it found one. A service of any other type may be a router of its own, or may do work:
/// nothing is known of it.
pub(super) fn is_of_fallback<S: 'static>(extensions: &Extensions) -> bool {
    TypeId::of::<S>() == TypeId::of::<Route>()
        && extensions.get::<OriginalUri>().is_some()
        && extensions.get::<MatchedPath>().is_none()
}
