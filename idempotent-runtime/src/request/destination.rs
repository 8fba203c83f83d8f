//! Which handler a request has come to.

use std::any::TypeId;
use std::sync::OnceLock;

use http::{Method, Uri};

/// A policy may be that of several handlers: of all routes beneath a layer, or of all instances of a generic handler.
#[derive(Default)]
pub(super) struct Destination {
    /// The type of what the guard runs.
    runs: OnceLock<TypeId>,
    route: OnceLock<(Method, Uri)>,
}

impl Destination {
    pub(super) fn runs(&self, handler: TypeId) {
        let _ = self.runs.set(handler);
    }

    pub(super) fn is_at(&self, method: &Method, uri: &Uri) {
        let _ = self.route.set((method.clone(), uri.clone()));
    }
}

impl PartialEq for Destination {
    fn eq(&self, other: &Self) -> bool {
        let [route, others] = [self, other].map(|it| it.route.get().map(|(method, uri)| (method, uri.path())));
        self.runs == other.runs && route == others
    }
}
