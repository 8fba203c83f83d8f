//! What one annotated handler asks of its idempotency: the validated, const-built form of the attribute.

pub(crate) mod build;
pub(crate) mod builder;
pub(crate) mod registration;

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::{Method, StatusCode, response};

/// Where the key is, unless the attribute says otherwise.
pub(crate) const DEFAULT_HEADER: &str = "idempotency-key";

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
#[expect(clippy::struct_excessive_bools, reason = "each is one argument with two values")]
#[derive(Debug)]
pub struct Policy {
    pub(crate) module: &'static str,
    pub(crate) function: &'static str,
    pub(crate) file: &'static str,
    pub(crate) line: u32,
    pub(crate) column: u32,
    /// The name of a type in the handler's body.
    pub(crate) path: fn() -> &'static str,
    pub(crate) default_scope: bool,
    pub(crate) scope: &'static str,
    pub(crate) shared_scope: bool,
    pub(crate) ttl: Duration,
    pub(crate) cache: Cache,
    /// That of a layer; the one of a handler is an expression of the handler's.
    pub(crate) predicate: Option<fn(&response::Parts) -> bool>,
    pub(crate) header: &'static str,
    pub(crate) key: KeySource,
    pub(crate) required: bool,
    pub(crate) invalid_key: InvalidKeyPolicy,
    pub(crate) methods: Methods,
    pub(crate) partitioned: bool,
    pub(crate) fingerprint: FingerprintSource,
    pub(crate) in_flight: InFlight,
    pub(crate) lease: Duration,
    pub(crate) after_crash: AfterCrash,
    pub(crate) max_body: usize,
    pub(crate) oversize: Oversize,
    pub(crate) keep_headers: &'static [&'static str],
    pub(crate) drop_headers: &'static [&'static str],
    pub(crate) store: Option<&'static str>,
    pub(crate) on_store_error: OnStoreError,
    pub(crate) database: Option<&'static str>,
    pub(crate) isolation: Option<Isolation>,
}

/// Which responses are recorded (`cache`, `cache_if`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Responses whose status is in one of these ranges, both ends included.
    Statuses(&'static [(u16, u16)]),
    /// Every response (`cache = all`).
    All,
    /// Responses for which the function of `cache_if` returns true.
    Predicate,
}

/// Where the key comes from (`header`, `key`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// The header of [`Policy::header`].
    Header,
    /// An expression over the handler's arguments.
    Expression,
}

/// How a request with a malformed key is treated (`invalid_key`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidKeyPolicy {
    /// It gets 400.
    Reject,
    /// It counts as a request without a key.
    Ignore,
}

/// Which request methods are guarded (`methods`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Methods {
    /// These, by their names.
    Only(&'static [&'static str]),
    /// Every method (`methods = any`).
    Any,
}

/// What a retry must repeat (`fingerprint`), besides the credentials if no caller is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FingerprintSource {
    /// Method, authority, path, query, media type, content coding and body.
    Request,
    /// The same, but a JSON body in its canonical form.
    Json,
    /// Method, authority, path, and an expression over the handler's arguments instead of query and body.
    Expression,
    /// Only an expression over the handler's arguments.
    Only,
    /// Nothing of the request's content.
    None,
}

/// What the fingerprint needs of a request before its handler's extractors have the body.
#[derive(Clone, Copy)]
pub enum Reads {
    Nothing,
    /// Without the query.
    Target,
    Body,
    Json,
}

impl FingerprintSource {
    pub(crate) fn reads(self) -> Reads {
        match self {
            Self::Request => Reads::Body,
            Self::Json => Reads::Json,
            Self::Expression => Reads::Target,
            Self::Only | Self::None => Reads::Nothing,
        }
    }
}

/// How a duplicate of a running request is answered (`in_flight`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlight {
    /// 409, at once.
    Reject,
    /// The response of the running request, if it is recorded within this time. A request that waits never executes. If the
    /// running request ends without a recorded response, the waiting one gets 409 `not_recorded`.
    Wait(Duration),
}

/// What the next request can do if the process died in the handler (`after_crash`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterCrash {
    /// Run the handler again: at least once.
    Rerun,
    /// It is rejected: at most once. The claim never expires, whatever the ttl, until it is completed or purged.
    Reject,
}

/// What a retry gets if the first response was too large to record (`oversize`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oversize {
    /// 409 with the original status.
    Reject,
    /// The handler runs again.
    Rerun,
}

/// What happens to a request if the store cannot be asked (`on_store_error`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStoreError {
    /// It gets 503.
    Reject,
    /// The handler runs unguarded.
    Run,
}

/// The isolation level of the transaction of a handler's `Tx` (`isolation`).
///
/// It makes no difference on SQLite, which has one writer at a time and whose transactions are always serializable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// All statements see the database as it was when the transaction began.
    RepeatableRead,
    /// As if it ran alone.
    Serializable,
}

impl Policy {
    /// The handler's module path and name, such as `shop::charges::create_charge`.
    pub fn handler(&self) -> String {
        format!("{}::{}", self.module, self.function)
    }

    /// The source file of the handler.
    pub fn file(&self) -> &'static str {
        self.file
    }

    /// The line of the attribute, counted from 1.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// The column of the attribute, counted from 1.
    pub fn column(&self) -> u32 {
        self.column
    }

    /// The namespace of the handler's keys.
    pub fn scope(&self) -> &'static str {
        self.scope
    }

    /// Whether other handlers may have the same scope (`shared_scope`).
    pub fn shared_scope(&self) -> bool {
        self.shared_scope
    }

    /// How long a record is kept.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Which responses are recorded.
    pub fn cache(&self) -> Cache {
        self.cache
    }

    /// The name of the header that carries the key, in lower case.
    pub fn header(&self) -> &'static str {
        self.header
    }

    /// Where the key comes from.
    pub fn key(&self) -> KeySource {
        self.key
    }

    /// Whether a request without a key is rejected.
    pub fn required(&self) -> bool {
        self.required
    }

    /// How a malformed key is treated.
    pub fn invalid_key(&self) -> InvalidKeyPolicy {
        self.invalid_key
    }

    /// Which methods are guarded.
    pub fn methods(&self) -> Methods {
        self.methods
    }

    /// Whether keys are partitioned by a `caller`.
    pub fn partitioned_by_caller(&self) -> bool {
        self.partitioned
    }

    /// What a retry must repeat.
    pub fn fingerprint(&self) -> FingerprintSource {
        self.fingerprint
    }

    /// How a duplicate of a running request is answered.
    pub fn in_flight(&self) -> InFlight {
        self.in_flight
    }

    /// How long a dead process holds a key.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// What the next request can do after a crash.
    pub fn after_crash(&self) -> AfterCrash {
        self.after_crash
    }

    /// The largest recorded body, in bytes.
    pub fn max_body(&self) -> usize {
        self.max_body
    }

    /// What a retry gets if the first response was larger than [`Policy::max_body`].
    pub fn oversize(&self) -> Oversize {
        self.oversize
    }

    /// Headers that are recorded although the default leaves them out.
    pub fn keep_headers(&self) -> &'static [&'static str] {
        self.keep_headers
    }

    /// Headers that are not recorded although the default would.
    pub fn drop_headers(&self) -> &'static [&'static str] {
        self.drop_headers
    }

    /// The name of the handler's store; `None` is the default store.
    pub fn store(&self) -> Option<&'static str> {
        self.store
    }

    /// What happens to a request if the store cannot be asked.
    pub fn on_store_error(&self) -> OnStoreError {
        self.on_store_error
    }

    /// The database of the handler's `Tx`, such as `"PostgreSQL"`; `None` if the handler takes no argument of that type.
    pub fn database(&self) -> Option<&'static str> {
        self.database
    }

    /// The isolation level of the handler's `Tx`; `None` is the database's default.
    pub fn isolation(&self) -> Option<Isolation> {
        self.isolation
    }

    pub(crate) fn guards(&self, method: &Method) -> bool {
        match self.methods {
            Methods::Any => true,
            Methods::Only(names) => names.contains(&method.as_str()),
        }
    }

    /// The path of the function, with the type and the trait of its `impl` block; empty for a layer's policy.
    ///
    /// A place does not tell handlers apart: a macro may emit several at one place. The path does, for people.
    pub(crate) fn function_path(&self) -> &'static str {
        // The type lies in the static of the policy, which lies in the function.
        (self.path)().rsplitn(3, "::").nth(2).unwrap_or_default()
    }

    /// Whether this is the copy of a handler that `debug_handler` makes for a check of its own, and which never runs.
    pub(crate) fn is_copy(&self) -> bool {
        (self.path)().split("::").any(|part| part.starts_with("__axum_macros_check_") && part.ends_with("_future"))
    }

    /// Names and places first.
    pub(crate) fn order(&self) -> impl Ord + use<> {
        (self.module, self.function, self.file, self.line, self.column, self.function_path())
    }
}

impl Cache {
    /// Whether a response of this status is recorded; `None` when only the predicate can tell.
    pub(crate) fn admits(self, status: StatusCode) -> Option<bool> {
        match self {
            Self::All => Some(true),
            Self::Predicate => None,
            Self::Statuses(ranges) => {
                let status = status.as_u16();
                Some(ranges.iter().any(|&(low, high)| RangeInclusive::new(low, high).contains(&status)))
            }
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.function_path() {
            "" => write!(f, "{}::{} at {}:{}", self.module, self.function, self.file, self.line),
            path => write!(f, "{path} at {}:{}", self.file, self.line),
        }
    }
}

/// The predicate of `cache_if`.
pub(crate) type CacheIf = fn(&response::Parts) -> bool;
