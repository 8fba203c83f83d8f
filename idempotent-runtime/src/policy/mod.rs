//! The policy of one annotated handler or layer: the validated form of the attribute's or the builder's options.

pub(crate) mod builder;
mod built;
pub(crate) mod constants;
mod database;
pub(crate) mod handle;
pub(crate) mod invalid_policy;
pub(crate) mod location;
pub(crate) mod overrides;
pub(crate) mod registration;
pub(crate) mod scope;
pub(crate) mod values;

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, response};

use crate::policy::built::Built;
use crate::policy::database::database_of_tx;
use crate::policy::location::SourceLocation;
use crate::policy::scope::Scope;
use crate::policy::values::{
    AfterCrash, Cache, FingerprintSource, InFlight, InvalidKeyPolicy, Isolation, KeyFormat, KeySource, Methods, Names,
    OnStoreError, Oversize, Stream,
};

/// The predicate of `cache_if`.
pub(crate) type CacheIf = fn(&response::Parts) -> bool;

/// The policy of one annotated handler, built at compile time by `#[idempotent(...)]`, or the policy of an
/// [`IdempotencyLayer`](crate::IdempotencyLayer), built by [`Policy::builder`].
///
/// [`policies`](crate::policies) lists the policies of all annotated handlers of the program.
///
/// # Examples
///
/// ```
/// for policy in idempotent_runtime::policies() {
///     println!("{} ({}:{}) keeps records for {:?}", policy.handler(), policy.file(), policy.line(), policy.ttl());
/// }
/// ```
#[derive(Debug)]
pub struct Policy {
    location: SourceLocation,
    settings: Settings,
    /// The database of the handler's `Tx`.
    database: Option<&'static str>,
    /// The values that a builder has collected, which replace the texts and lists in the settings.
    built: Option<Box<Built>>,
    predicate: Option<CacheIf>,
}

/// A field for each argument of the attribute that is part of the policy, and whether the scope is the default one. The
/// attribute sets the fields of its arguments and leaves the defaults in the others.
#[doc(hidden)]
#[expect(clippy::struct_excessive_bools, reason = "each is one argument with two values")]
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub scope: &'static str,
    /// Whether the scope is the path of the function, because the attribute sets none.
    pub has_default_scope: bool,
    pub shared_scope: bool,
    pub ttl: Duration,
    pub cache: Cache<'static>,
    pub header: &'static str,
    pub key: KeySource,
    pub required: bool,
    pub invalid_key: InvalidKeyPolicy,
    pub min_key_length: usize,
    pub key_format: KeyFormat,
    pub methods: Methods<'static>,
    /// Whether the argument `caller` is given.
    pub caller: bool,
    pub fingerprint: FingerprintSource,
    pub in_flight: InFlight,
    pub lease: Duration,
    pub after_crash: AfterCrash,
    pub isolation: Option<Isolation>,
    pub stream: Stream,
    pub max_body: usize,
    pub oversize: Oversize,
    pub keep_headers: &'static [&'static str],
    pub drop_headers: &'static [&'static str],
    pub store: Option<&'static str>,
    pub on_store_error: OnStoreError,
}

#[doc(hidden)]
impl Settings {
    pub const DEFAULT: Self = Self {
        scope: "",
        has_default_scope: false,
        shared_scope: false,
        ttl: idempotent_policy::TTL,
        cache: Cache::Statuses(idempotent_policy::STATUSES),
        header: idempotent_policy::HEADER,
        key: KeySource::Header,
        required: false,
        invalid_key: InvalidKeyPolicy::Reject,
        min_key_length: 1,
        key_format: KeyFormat::Any,
        methods: Methods::Only(Names::constants(idempotent_policy::METHODS)),
        caller: false,
        fingerprint: FingerprintSource::Request,
        in_flight: InFlight::Reject,
        lease: idempotent_policy::LEASE,
        after_crash: AfterCrash::Rerun,
        isolation: None,
        stream: Stream::Record,
        max_body: idempotent_policy::MAX_BODY,
        oversize: Oversize::Reject,
        keep_headers: &[],
        drop_headers: &[],
        store: None,
        on_store_error: OnStoreError::Reject,
    };
}

#[doc(hidden)]
impl Policy {
    /// Creates the policy of a handler, at the location of the call. The attribute's expansion calls this. `path` names
    /// a type in the static of the policy, in the handler's body. `databases` are the databases of the arguments whose
    /// type is written like a `Tx`.
    #[track_caller]
    pub const fn of_handler(
        module: &'static str,
        function: &'static str,
        path: fn() -> &'static str,
        databases: &[Option<&'static str>],
        settings: Settings,
    ) -> Self {
        let location = Location::caller();
        let (file, line, column) = (location.file(), location.line(), location.column());
        let location = SourceLocation { module, function, file, line, column, path };
        let database = database_of_tx(databases);
        assert!(
            database.is_none() || matches!(settings.on_store_error, OnStoreError::Reject),
            "a handler with a `Tx` cannot run without its store: remove `on_store_error`"
        );
        Self { location, settings, database, built: None, predicate: None }
    }
}

impl Policy {
    /// Returns the handler's module path and name, such as `shop::charges::create_charge`.
    pub fn handler(&self) -> String {
        format!("{}::{}", self.location.module, self.location.function)
    }

    /// Returns the source file of the handler.
    pub fn file(&self) -> &'static str {
        self.location.file
    }

    /// Returns the line of the attribute, counted from 1.
    pub fn line(&self) -> u32 {
        self.location.line
    }

    /// Returns the column of the attribute, counted from 1.
    pub fn column(&self) -> u32 {
        self.location.column
    }

    /// Returns the namespace of the handler's keys.
    pub fn scope(&self) -> &str {
        self.built.as_ref().map_or(self.settings.scope, |built| &built.scope)
    }

    /// Returns whether other handlers may have the same scope (`shared_scope`).
    pub fn shared_scope(&self) -> bool {
        self.settings.shared_scope
    }

    /// Returns how long a record is kept.
    pub fn ttl(&self) -> Duration {
        self.settings.ttl
    }

    /// Returns which responses are recorded.
    pub fn cache(&self) -> Cache<'_> {
        match (self.settings.cache, &self.built) {
            (Cache::Statuses(_), Some(built)) => Cache::Statuses(&built.statuses),
            (cache, _) => cache,
        }
    }

    /// Returns the name of the header that carries the key, in lower case.
    pub fn header(&self) -> &str {
        self.built.as_ref().map_or(self.settings.header, |built| &built.header)
    }

    /// Returns where the key comes from.
    pub fn key(&self) -> KeySource {
        self.settings.key
    }

    /// Returns whether a request without a key is rejected.
    pub fn required(&self) -> bool {
        self.settings.required
    }

    /// Returns how a malformed key is treated.
    pub fn invalid_key(&self) -> InvalidKeyPolicy {
        self.settings.invalid_key
    }

    /// Returns the least number of characters of a key.
    pub fn min_key_length(&self) -> usize {
        self.settings.min_key_length
    }

    /// Returns the form that keys must have.
    pub fn key_format(&self) -> KeyFormat {
        self.settings.key_format
    }

    /// Returns which methods are guarded.
    pub fn methods(&self) -> Methods<'_> {
        match (self.settings.methods, &self.built) {
            (Methods::Only(_), Some(built)) => Methods::Only(Names::built(&built.methods)),
            (methods, _) => methods,
        }
    }

    /// Returns whether keys are partitioned by a `caller`.
    pub fn has_caller(&self) -> bool {
        self.settings.caller
    }

    /// Returns what a retry must repeat.
    pub fn fingerprint(&self) -> FingerprintSource {
        self.settings.fingerprint
    }

    /// Returns how a duplicate of a running request is answered.
    pub fn in_flight(&self) -> InFlight {
        self.settings.in_flight
    }

    /// Returns how long a dead process holds a key.
    pub fn lease(&self) -> Duration {
        self.settings.lease
    }

    /// Returns what the next request can do after a crash.
    pub fn after_crash(&self) -> AfterCrash {
        self.settings.after_crash
    }

    /// Returns what is recorded of a response whose length is not known before its end.
    pub fn stream(&self) -> Stream {
        self.settings.stream
    }

    /// Returns the largest recorded body, in bytes.
    pub fn max_body(&self) -> usize {
        self.settings.max_body
    }

    /// Returns what a retry gets if the first response was larger than [`Policy::max_body`].
    pub fn oversize(&self) -> Oversize {
        self.settings.oversize
    }

    /// Returns the headers that are recorded although the default leaves them out.
    pub fn keep_headers(&self) -> Names<'_> {
        match &self.built {
            None => Names::constants(self.settings.keep_headers),
            Some(built) => Names::built(&built.keep_headers),
        }
    }

    /// Returns the headers that are not recorded although the default records them.
    pub fn drop_headers(&self) -> Names<'_> {
        match &self.built {
            None => Names::constants(self.settings.drop_headers),
            Some(built) => Names::built(&built.drop_headers),
        }
    }

    /// Returns the name of the handler's store; `None` is the default store.
    pub fn store(&self) -> Option<&str> {
        self.built.as_ref().map_or(self.settings.store, |built| built.store.as_deref())
    }

    /// Returns what happens to a request if the store is unreachable.
    pub fn on_store_error(&self) -> OnStoreError {
        self.settings.on_store_error
    }

    /// Returns the database of the handler's `Tx`, such as `"PostgreSQL"`. Returns `None` if the handler takes no `Tx`.
    pub fn database(&self) -> Option<&'static str> {
        self.database
    }

    /// Returns the isolation level of the handler's `Tx`; `None` is the database's default.
    pub fn isolation(&self) -> Option<Isolation> {
        self.settings.isolation
    }

    /// Returns [`Policy::scope`] for a value that outlives the policy.
    pub(crate) fn owned_scope(&self) -> Scope {
        match &self.built {
            None => Scope::Handler(self.settings.scope),
            Some(built) => Scope::Layer(Arc::clone(&built.scope)),
        }
    }

    /// Returns the settings of the attribute, without a builder's texts and lists.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the policy of the same handler with other settings. A layer's policy cannot be changed in this way,
    /// because it has its own texts and lists.
    pub(crate) fn with_settings(&self, settings: Settings) -> Self {
        debug_assert!(self.built.is_none(), "only the policies of handlers are overridden");
        Self { location: self.location.clone(), settings, database: self.database, built: None, predicate: None }
    }

    /// Returns the place in the source where the policy is written.
    pub(crate) fn location(&self) -> &SourceLocation {
        &self.location
    }

    /// Returns the predicate of a layer's policy. A handler's predicate is an expression of the handler.
    pub(crate) fn predicate(&self) -> Option<CacheIf> {
        self.predicate
    }

    pub(crate) fn guards(&self, method: &Method) -> bool {
        self.methods().contain(method)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.location.fmt(f)
    }
}
