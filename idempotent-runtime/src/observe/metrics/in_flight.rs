//! Counts running handlers, and requests that continue without their clients.

use crate::observe::metrics::meters::METERS;
use crate::observe::metrics::scope::Scope;

/// Counts one running handler until this value is dropped, however the handler ends.
pub(crate) struct InFlight {
    scope: &'static Scope,
    number: u64,
}

impl InFlight {
    pub(crate) fn begin(scope: &str) -> Self {
        let scope = METERS.scope(scope);
        Self { scope, number: scope.begin() }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.scope.end(self.number);
    }
}

/// Counts one request that continues without its client, until this value is dropped.
pub(crate) struct WithoutClient(&'static Scope);

impl WithoutClient {
    pub(crate) fn begin(scope: &str) -> Self {
        let scope = METERS.scope(scope);
        scope.client_left();
        Self(scope)
    }
}

impl Drop for WithoutClient {
    fn drop(&mut self) {
        self.0.end_without_client();
    }
}
