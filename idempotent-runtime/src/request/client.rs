//! Whether a request that no guard has passed on is of the same client as another one.

use http::HeaderMap;
use http::request::Parts;

use crate::fingerprint::builder::Credentials;
use crate::registry::Registry;

/// Tells clients apart by their credentials, and by the callers that the registry names.
pub(super) struct Client {
    registry: Registry,
    credentials: Credentials,
}

impl Client {
    pub(super) fn of(registry: &Registry, headers: &HeaderMap) -> Self {
        let credentials = Credentials::of(registry.credential_headers(), headers);
        Self { registry: registry.clone(), credentials }
    }

    /// Whether a request with these headers has the same credentials.
    pub(super) fn has_sent(&self, headers: &HeaderMap) -> bool {
        Credentials::of(self.registry.credential_headers(), headers) == self.credentials
    }

    /// The caller of a request with this head, as the registry names it.
    pub(super) fn caller_of(&self, parts: &Parts) -> Option<String> {
        self.registry.caller().and_then(|caller| caller(parts))
    }
}
