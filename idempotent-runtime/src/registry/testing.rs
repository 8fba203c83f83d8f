//! Registries for tests: one with an observer, and one that guards nothing.

use crate::observe::event::Observer;
use crate::registry::Registry;
use crate::registry::build::RegistryBuilder;
use crate::store::memory::store::MemoryStore;

impl Registry {
    /// Creates a registry under which handlers run unguarded: nothing is claimed, recorded, replayed or awaited, a
    /// handler ends when its client disconnects, and **every retry executes again**. Each call logs a WARN that says
    /// so.
    ///
    /// Use it for tests of what a handler does, and of clients whose retries must not be hidden. Requests are still
    /// validated: a missing key that is `required` is rejected, and so is a malformed key.
    /// [`Idempotency`](crate::Idempotency) has the key and downstream keys, and attempt 1 each time. Its steps run and
    /// record nothing. A handler with a `Tx` is rejected with 500 `transaction_failed`, because there is no database.
    ///
    /// # Examples
    ///
    /// ```
    /// use axum::{Router, routing::post};
    /// use idempotent_runtime::{Registry, idempotent};
    ///
    /// #[idempotent(scope = "charges")]
    /// async fn create_charge() -> &'static str {
    ///     "charged"
    /// }
    ///
    /// let app: Router = Router::new().route("/charges", post(create_charge)).layer(Registry::disabled().layer());
    /// ```
    pub fn disabled() -> Self {
        tracing::warn!("idempotency is disabled: handlers run bare, and every retry executes again");
        let mut builder = Self::builder(MemoryStore::new());
        builder.is_disabled = true;
        builder.build()
    }
}

impl RegistryBuilder {
    pub(crate) fn observed_by(mut self, observer: impl Observer) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }
}
