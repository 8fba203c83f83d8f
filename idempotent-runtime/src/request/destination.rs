//! Identifies the handler that a request has reached.

use std::any::TypeId;
use std::sync::OnceLock;

use http::Method;
use http::uri::{PathAndQuery, Uri};

/// Identifies the handler. Its policy does not identify it: all routes beneath a layer have one policy, and so have all
/// instances of a generic handler.
#[derive(Default)]
pub(super) struct Destination {
    /// The type of the handler or service that the guard runs.
    handler: OnceLock<TypeId>,
    route: OnceLock<(Method, Option<PathAndQuery>)>,
}

impl Destination {
    pub(super) fn set_handler(&self, handler: TypeId) {
        let _ = self.handler.set(handler);
    }

    pub(super) fn set_route(&self, method: &Method, uri: &Uri) {
        let _ = self.route.set((method.clone(), uri.path_and_query().cloned()));
    }
}

impl PartialEq for Destination {
    fn eq(&self, other: &Self) -> bool {
        let [route, others] = [self, other].map(|it| {
            let (method, target) = it.route.get()?;
            Some((method, target.as_ref().map_or("", PathAndQuery::path)))
        });
        self.handler == other.handler && route == others
    }
}
