//! Decides whether a request that no guard has passed on comes from the same client as another request.

use http::HeaderMap;
use http::request::Parts;

use crate::fingerprint::builder::Credentials;
use crate::registry::Registry;

/// Identifies a client by its credentials, and by the caller that the registry names.
pub(super) struct Client {
    registry: Registry,
    credentials: Credentials,
}

impl Client {
    pub(super) fn new(registry: &Registry, credentials: Credentials) -> Self {
        Self { registry: registry.clone(), credentials }
    }

    /// Returns whether a request with these headers has the same credentials.
    pub(super) fn has_sent(&self, headers: &HeaderMap) -> bool {
        Credentials::of(self.registry.credential_headers(), headers) == self.credentials
    }

    /// Returns the caller that the registry names for a request with this head.
    pub(super) fn caller_of(&self, parts: &Parts) -> Option<String> {
        self.registry.caller().and_then(|caller| caller(parts))
    }
}
