//! What one annotated handler or layer asks of its idempotency: the validated form of the attribute and of the builder.

pub(crate) mod builder;
pub(crate) mod constants;
pub(crate) mod handle;
pub(crate) mod invalid_policy;
mod location;
pub(crate) mod overrides;
pub(crate) mod registration;
pub(crate) mod scope;
pub(crate) mod settings;
pub(crate) mod values;

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, response};

use crate::policy::location::SourceLocation;
use crate::policy::scope::Scope;
use crate::policy::settings::Settings;
use crate::policy::values::{
    AfterCrash, Cache, FingerprintSource, HeaderNames, InFlight, InvalidKeyPolicy, Isolation, KeyFormat, KeySource,
    Methods, Names, OnStoreError, Oversize, Stream,
};

/// The predicate of `cache_if`.
pub(crate) type CacheIf = fn(&response::Parts) -> bool;

/// The policy of one annotated handler, built at compile time by `#[idempotent(...)]`, or that of an
/// [`IdempotencyLayer`](crate::IdempotencyLayer), built by [`Policy::builder`].
///
/// [`policies`](crate::policies) lists those of the annotated handlers of the whole program.
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
    /// What a builder has collected, in place of the text of the settings.
    built: Option<Box<Built>>,
    predicate: Option<CacheIf>,
}

/// The text and the lists of a policy that a builder made. The attribute's are constants of the program.
#[derive(Debug)]
struct Built {
    scope: Arc<str>,
    header: String,
    statuses: Vec<(u16, u16)>,
    methods: Vec<&'static str>,
    keep_headers: Vec<String>,
    drop_headers: Vec<String>,
    store: Option<String>,
}

#[doc(hidden)]
impl Policy {
    /// That of a handler, at the location of the call: what the attribute's expansion calls. `path` names a type in the static of
    /// the policy, in the handler's body; `databases` are those of the arguments that look like a `Tx`.
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
        let mut database = None;
        let mut index = 0;
        while index < databases.len() {
            if databases[index].is_some() {
                assert!(
                    database.is_none(),
                    "the handler has two arguments `Tx`, but one transaction: remove one of them"
                );
                database = databases[index];
            }
            index += 1;
        }
        assert!(
            database.is_none() || matches!(settings.on_store_error, OnStoreError::Reject),
            "a handler with a `Tx` cannot run without its store: remove `on_store_error`"
        );
        Self { location, settings, database, built: None, predicate: None }
    }
}

impl Policy {
    /// The handler's module path and name, such as `shop::charges::create_charge`.
    pub fn handler(&self) -> String {
        format!("{}::{}", self.location.module, self.location.function)
    }

    /// The source file of the handler.
    pub fn file(&self) -> &'static str {
        self.location.file
    }

    /// The line of the attribute, counted from 1.
    pub fn line(&self) -> u32 {
        self.location.line
    }

    /// The column of the attribute, counted from 1.
    pub fn column(&self) -> u32 {
        self.location.column
    }

    /// The namespace of the handler's keys.
    pub fn scope(&self) -> &str {
        self.built.as_ref().map_or(self.settings.scope, |built| &built.scope)
    }

    /// Whether other handlers may have the same scope (`shared_scope`).
    pub fn shared_scope(&self) -> bool {
        self.settings.shared_scope
    }

    /// How long a record is kept.
    pub fn ttl(&self) -> Duration {
        self.settings.ttl
    }

    /// Which responses are recorded.
    pub fn cache(&self) -> Cache<'_> {
        match (self.settings.cache, &self.built) {
            (Cache::Statuses(_), Some(built)) => Cache::Statuses(&built.statuses),
            (cache, _) => cache,
        }
    }

    /// The name of the header that carries the key, in lower case.
    pub fn header(&self) -> &str {
        self.built.as_ref().map_or(self.settings.header, |built| &built.header)
    }

    /// Where the key comes from.
    pub fn key(&self) -> KeySource {
        self.settings.key
    }

    /// Whether a request without a key is rejected.
    pub fn required(&self) -> bool {
        self.settings.required
    }

    /// How a malformed key is treated.
    pub fn invalid_key(&self) -> InvalidKeyPolicy {
        self.settings.invalid_key
    }

    /// The least number of characters of a key.
    pub fn min_key_length(&self) -> usize {
        self.settings.min_key_length
    }

    /// The form that keys must have.
    pub fn key_format(&self) -> KeyFormat {
        self.settings.key_format
    }

    /// Which methods are guarded.
    pub fn methods(&self) -> Methods<'_> {
        match (self.settings.methods, &self.built) {
            (Methods::Only(_), Some(built)) => Methods::Only(&built.methods),
            (methods, _) => methods,
        }
    }

    /// Whether keys are partitioned by a `caller`.
    pub fn partitioned_by_caller(&self) -> bool {
        self.settings.caller
    }

    /// What a retry must repeat.
    pub fn fingerprint(&self) -> FingerprintSource {
        self.settings.fingerprint
    }

    /// How a duplicate of a running request is answered.
    pub fn in_flight(&self) -> InFlight {
        self.settings.in_flight
    }

    /// How long a dead process holds a key.
    pub fn lease(&self) -> Duration {
        self.settings.lease
    }

    /// What the next request can do after a crash.
    pub fn after_crash(&self) -> AfterCrash {
        self.settings.after_crash
    }

    /// What is recorded of a response whose length is not known before its end.
    pub fn stream(&self) -> Stream {
        self.settings.stream
    }

    /// The largest recorded body, in bytes.
    pub fn max_body(&self) -> usize {
        self.settings.max_body
    }

    /// What a retry gets if the first response was larger than [`Policy::max_body`].
    pub fn oversize(&self) -> Oversize {
        self.settings.oversize
    }

    /// Headers that are recorded although the default leaves them out.
    pub fn keep_headers(&self) -> HeaderNames<'_> {
        HeaderNames(match &self.built {
            None => Names::Static(self.settings.keep_headers),
            Some(built) => Names::Built(&built.keep_headers),
        })
    }

    /// Headers that are not recorded although the default would.
    pub fn drop_headers(&self) -> HeaderNames<'_> {
        HeaderNames(match &self.built {
            None => Names::Static(self.settings.drop_headers),
            Some(built) => Names::Built(&built.drop_headers),
        })
    }

    /// The name of the handler's store; `None` is the default store.
    pub fn store(&self) -> Option<&str> {
        self.built.as_ref().map_or(self.settings.store, |built| built.store.as_deref())
    }

    /// What happens to a request if the store cannot be asked.
    pub fn on_store_error(&self) -> OnStoreError {
        self.settings.on_store_error
    }

    /// The database of the handler's `Tx`, such as `"PostgreSQL"`; `None` if the handler takes no argument of that type.
    pub fn database(&self) -> Option<&'static str> {
        self.database
    }

    /// The isolation level of the handler's `Tx`; `None` is the database's default.
    pub fn isolation(&self) -> Option<Isolation> {
        self.settings.isolation
    }

    /// [`Policy::scope`], for what outlives the policy.
    pub(crate) fn owned_scope(&self) -> Scope {
        match &self.built {
            None => Scope::Handler(self.settings.scope),
            Some(built) => Scope::Layer(Arc::clone(&built.scope)),
        }
    }

    /// What the attribute says; a builder's texts and lists are not among it.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The policy of the same handler with other settings.
    pub(crate) fn with_settings(&self, settings: Settings) -> Self {
        Self { location: self.location.clone(), settings, database: self.database, built: None, predicate: None }
    }

    /// The handler's module, and its name in there.
    #[cfg(any(feature = "aide", feature = "utoipa"))]
    pub(crate) fn module_and_function(&self) -> (&'static str, &'static str) {
        (self.location.module, self.location.function)
    }

    /// That of a layer; the one of a handler is an expression of the handler's.
    pub(crate) fn predicate(&self) -> Option<CacheIf> {
        self.predicate
    }

    /// Whether the scope is the function's path, because the attribute gives none.
    pub(crate) fn has_default_scope(&self) -> bool {
        self.settings.has_default_scope
    }

    pub(crate) fn guards(&self, method: &Method) -> bool {
        match self.methods() {
            Methods::Any => true,
            Methods::Only(names) => names.contains(&method.as_str()),
        }
    }

    /// The path of the function, with the type and the trait of its `impl` block; empty for a layer's policy.
    pub(crate) fn function_path(&self) -> &'static str {
        self.location.function_path()
    }

    /// Whether this is the copy of a handler that `debug_handler` makes for a check of its own, and which never runs.
    pub(crate) fn is_copy(&self) -> bool {
        self.location.is_copy()
    }

    /// Names and places first.
    pub(crate) fn order(&self) -> impl Ord + use<> {
        self.location.order()
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.location.fmt(f)
    }
}
