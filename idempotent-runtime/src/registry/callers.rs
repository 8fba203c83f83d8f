//! The settings of a registry that identify the caller of a request.

use std::sync::Arc;

use http::HeaderName;
use http::request::Parts;

use crate::registry::build::RegistryBuilder;

impl RegistryBuilder {
    /// Sets the function that names the caller of every request whose handler or layer names none: the principal that
    /// owns the key, such as a tenant or a user. Each caller has its own keys, and may use other credentials for each
    /// attempt.
    ///
    /// The function gets the head of the request as the last extractor of its handler sees it, with the extensions that
    /// an authentication middleware has added. **Take the caller from authenticated data**: a client that can claim to
    /// be another caller gets that caller's responses. `None` means that the request has no caller. Then the request's
    /// credentials identify its client: see [`credential_headers`](Self::credential_headers). `caller = expr` on a
    /// handler takes precedence over this function.
    ///
    /// # Examples
    ///
    /// ```
    /// use idempotent_runtime::{Registry, store::MemoryStore};
    ///
    /// #[derive(Clone)]
    /// struct Tenant(String);
    ///
    /// let registry = Registry::builder(MemoryStore::new())
    ///     .caller(|parts| parts.extensions.get::<Tenant>().map(|tenant| tenant.0.clone()))
    ///     .build();
    /// ```
    pub fn caller(mut self, caller: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.caller = Some(Arc::new(caller));
        self
    }

    /// Sets the headers that identify a client if no caller is named. The default is `Authorization`,
    /// `Proxy-Authorization`, `Cookie` and `X-Api-Key`. This list replaces the default.
    ///
    /// All lines of these headers are part of the fingerprint. A key that comes with other values gets 422
    /// `other_credentials`, and never the response. Cookies in several lines, as HTTP/2 can send them, equal the same
    /// cookies in one line.
    ///
    /// You can leave out a header that changes between attempts, such as a cookie of an analytics service, but only if
    /// another header identifies the client.
    ///
    /// # Examples
    ///
    /// ```
    /// use idempotent_runtime::{Registry, store::MemoryStore};
    ///
    /// let registry =
    ///     Registry::builder(MemoryStore::new()).credential_headers(["authorization", "x-tenant-token"]).build();
    /// ```
    ///
    /// # Panics
    ///
    /// If a name is no header name.
    pub fn credential_headers(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let name = |name: &str| {
            HeaderName::from_bytes(name.as_bytes())
                .unwrap_or_else(|_| panic!("`credential_headers`: {name:?} is no header name; write \"x-api-key\""))
        };
        let mut headers: Vec<HeaderName> = Vec::new();
        for header in names.into_iter().map(|written| name(written.as_ref())) {
            if !headers.contains(&header) {
                headers.push(header);
            }
        }
        self.credential_headers = headers.into();
        self
    }
}
