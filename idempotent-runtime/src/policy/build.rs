//! What the attribute writes: a policy as a `const`, so that nothing is parsed at run time.

use std::panic::Location;
use std::time::Duration;

use crate::policy::{
    AfterCrash, Cache, DEFAULT_HEADER, FingerprintSource, InFlight, InvalidKeyPolicy, Isolation, KeySource, Methods,
    OnStoreError, Oversize, Policy,
};

/// The defaults of every argument, and one `const` setter for each: what the attribute's expansion calls.
#[doc(hidden)]
impl Policy {
    /// It stands where this is called, under the function's name as its scope.
    #[track_caller]
    pub const fn new(module: &'static str, function: &'static str) -> Self {
        let place = Location::caller();
        Self {
            module,
            function,
            file: place.file(),
            line: place.line(),
            column: place.column(),
            path: || "",
            default_scope: false,
            scope: function,
            shared_scope: false,
            ttl: Duration::from_hours(24),
            cache: Cache::Statuses(&[(200, 299), (303, 303)]),
            predicate: None,
            header: DEFAULT_HEADER,
            key: KeySource::Header,
            required: false,
            invalid_key: InvalidKeyPolicy::Reject,
            methods: Methods::Only(&["POST", "PUT", "PATCH", "DELETE"]),
            partitioned: false,
            fingerprint: FingerprintSource::Request,
            in_flight: InFlight::Reject,
            lease: Duration::from_secs(30),
            after_crash: AfterCrash::Rerun,
            max_body: 4 * 1024 * 1024,
            oversize: Oversize::Reject,
            keep_headers: &[],
            drop_headers: &[],
            store: None,
            on_store_error: OnStoreError::Reject,
            database: None,
            isolation: None,
        }
    }

    /// `path` names a type in the static of the policy, in the handler's body.
    #[must_use]
    pub const fn with_path(mut self, path: fn() -> &'static str) -> Self {
        self.path = path;
        self
    }

    #[must_use]
    pub const fn with_scope(mut self, scope: &'static str) -> Self {
        self.scope = scope;
        self
    }

    #[must_use]
    pub const fn with_default_scope(mut self, scope: &'static str) -> Self {
        self.scope = scope;
        self.default_scope = true;
        self
    }

    #[must_use]
    pub const fn with_shared_scope(mut self) -> Self {
        self.shared_scope = true;
        self
    }

    #[must_use]
    pub const fn with_ttl_millis(mut self, millis: u64) -> Self {
        self.ttl = Duration::from_millis(millis);
        self
    }

    #[must_use]
    pub const fn with_cache(mut self, cache: Cache) -> Self {
        self.cache = cache;
        self
    }

    #[must_use]
    pub const fn with_header(mut self, lower_case: &'static str) -> Self {
        self.header = lower_case;
        self
    }

    #[must_use]
    pub const fn with_key_expression(mut self) -> Self {
        self.key = KeySource::Expression;
        self
    }

    #[must_use]
    pub const fn with_isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = Some(isolation);
        self
    }

    #[must_use]
    pub const fn with_required(mut self) -> Self {
        self.required = true;
        self
    }

    #[must_use]
    pub const fn with_invalid_key(mut self, policy: InvalidKeyPolicy) -> Self {
        self.invalid_key = policy;
        self
    }

    #[must_use]
    pub const fn with_methods(mut self, methods: Methods) -> Self {
        self.methods = methods;
        self
    }

    #[must_use]
    pub const fn with_caller(mut self) -> Self {
        self.partitioned = true;
        self
    }

    #[must_use]
    pub const fn with_fingerprint(mut self, source: FingerprintSource) -> Self {
        self.fingerprint = source;
        self
    }

    #[must_use]
    pub const fn with_wait_millis(mut self, millis: u64) -> Self {
        self.in_flight = InFlight::Wait(Duration::from_millis(millis));
        self
    }

    #[must_use]
    pub const fn with_lease_millis(mut self, millis: u64) -> Self {
        self.lease = Duration::from_millis(millis);
        self
    }

    #[must_use]
    pub const fn with_after_crash(mut self, after_crash: AfterCrash) -> Self {
        self.after_crash = after_crash;
        self
    }

    #[must_use]
    pub const fn with_max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    #[must_use]
    pub const fn with_oversize(mut self, oversize: Oversize) -> Self {
        self.oversize = oversize;
        self
    }

    #[must_use]
    pub const fn with_keep_headers(mut self, lower_case: &'static [&'static str]) -> Self {
        self.keep_headers = lower_case;
        self
    }

    #[must_use]
    pub const fn with_drop_headers(mut self, lower_case: &'static [&'static str]) -> Self {
        self.drop_headers = lower_case;
        self
    }

    #[must_use]
    pub const fn with_store(mut self, name: &'static str) -> Self {
        self.store = Some(name);
        self
    }

    #[must_use]
    pub const fn with_database(mut self, database: Option<&'static str>) -> Self {
        if database.is_some() {
            self.database = database;
        }
        self
    }

    #[must_use]
    pub const fn with_on_store_error(mut self, policy: OnStoreError) -> Self {
        self.on_store_error = policy;
        self
    }
}
