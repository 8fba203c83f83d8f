//! The place at which a request arrives.

use http::Method;
use http::uri::{PathAndQuery, Uri};

/// The method and the path of a request. A policy does not identify a handler: all routes beneath a layer have one
/// policy, and so have all instances of a generic handler.
pub(super) struct Destination {
    method: Method,
    target: Option<PathAndQuery>,
}

impl Destination {
    pub(super) fn new(method: &Method, uri: &Uri) -> Self {
        Self { method: method.clone(), target: uri.path_and_query().cloned() }
    }
}

impl PartialEq for Destination {
    fn eq(&self, other: &Self) -> bool {
        let [path, others] = [self, other].map(|it| it.target.as_ref().map_or("", PathAndQuery::path));
        self.method == other.method && path == others
    }
}
