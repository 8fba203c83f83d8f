//! The settings of a registry that limit how many requests may run at a time.

use std::sync::Arc;

use crate::caller_limit::CallerLimit;
use crate::registry::build::RegistryBuilder;

impl RegistryBuilder {
    /// Limits how many operations of one caller can be in flight in one scope; no limit by default. Requests with one
    /// key are one operation: the request that runs, and all requests that wait for it.
    ///
    /// A request of another operation gets 429 with `Retry-After`. Retries of a recorded or a running request are
    /// answered as usual. To find them, the store is read but never written, so a flood of one caller takes only a
    /// limited number of claims and handlers.
    ///
    /// The same number limits how many bodies of one caller the guard reads into memory at the same time, in all scopes
    /// together. A further body of more than 4 KiB, or of unknown length, waits for a second, and then the request gets
    /// 429 and its body is dropped. Here the caller is the one that the layer or [`caller`](Self::caller) names, or the
    /// digest of all credentials, because `caller = expr` is not known before the body is read. Requests without a
    /// caller and without credentials share 1,000 permits for bodies.
    ///
    /// The caller is the one that the handler, its layer or [`caller`](Self::caller) names, or else the digest of all
    /// credentials. All requests without a caller and without credentials count as one caller. Each process counts
    /// separately.
    ///
    /// # Panics
    ///
    /// If `most` is zero.
    pub fn max_in_flight_per_caller(mut self, most: usize) -> Self {
        assert!(most > 0, "`max_in_flight_per_caller` must be greater than zero");
        self.caller_limit = Some(Arc::new(CallerLimit::new(most)));
        self
    }

    /// Limits how many guarded handlers can run at a time in this registry; 10,000 by default. Handlers whose clients
    /// have disconnected count until they end. A limit on connections or requests does not count them.
    ///
    /// A request beyond the limit gets 503 `too_many_in_flight` with `Retry-After`, and runs nothing. Retries of a
    /// recorded or a running request are answered as usual. Each process counts separately. The default is far above
    /// the number of handlers that a healthy service runs at a time. It is low enough that clients that disconnect
    /// cannot exhaust the memory: at 100 KiB for each handler, 10,000 handlers need 1 GB.
    ///
    /// A request that passes two guards of different scopes, such as an annotated handler beneath an
    /// [`IdempotencyLayer`](crate::IdempotencyLayer), takes two permits. If only one is left, the inner guard answers
    /// 503.
    ///
    /// # Examples
    ///
    /// ```
    /// use idempotent_runtime::{Registry, store::MemoryStore};
    ///
    /// let registry = Registry::builder(MemoryStore::new()).max_running(2_000).max_running_per_scope(500).build();
    /// ```
    ///
    /// # Panics
    ///
    /// If `most` is zero.
    pub fn max_running(mut self, most: usize) -> Self {
        assert!(most > 0, "`max_running` must be greater than zero");
        self.max_running = most;
        self
    }

    /// Limits how many guarded handlers can run at a time in each scope; 5,000 by default, so that one handler that
    /// hangs leaves permits for the others. Otherwise like [`max_running`](Self::max_running).
    ///
    /// # Panics
    ///
    /// If `most` is zero.
    pub fn max_running_per_scope(mut self, most: usize) -> Self {
        assert!(most > 0, "`max_running_per_scope` must be greater than zero");
        self.max_running_per_scope = most;
        self
    }
}
