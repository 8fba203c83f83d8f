//! The data that a guard keeps of a request's head.

use axum::extract::Request;
use http::{Method, Version};

use crate::fingerprint::builder::Credentials;
use crate::registry::Registry;
use crate::request::client::Client;
use crate::request::destination::Destination;

/// The data that a guard keeps of a request's head. One value for all, because each `OnceLock` costs each request time.
pub(super) struct RequestHead {
    /// Identifies the client of the request. Used for the requests that its handler sends. `None` without a registry.
    pub(super) client: Option<Client>,
    pub(super) destination: Destination,
    /// The client gets no body.
    pub(super) is_head: bool,
    /// A response of unknown length ends without a last frame, so the client cannot detect that it is incomplete.
    pub(super) has_response_without_an_end: bool,
}

impl RequestHead {
    /// Returns the head of this request, and the request's credentials: the headers that its registry counts as such.
    pub(super) fn of(registry: Option<&Registry>, request: &Request) -> (Self, Credentials) {
        let credentials = registry.map(|registry| Credentials::of(registry.credential_headers(), request.headers()));
        let client =
            registry.zip(credentials.clone()).map(|(registry, credentials)| Client::new(registry, credentials));
        let is_head = request.method() == Method::HEAD;
        let head = Self {
            client,
            destination: Destination::new(request.method(), request.uri()),
            is_head,
            // HTTP/1.0 ends such a response with the connection.
            has_response_without_an_end: is_head || request.version() <= Version::HTTP_10,
        };
        (head, credentials.unwrap_or_default())
    }
}
