//! Collects the options of a registry.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use http::HeaderName;
use http::request::Parts;
use tokio_util::task::TaskTracker;

use crate::caller_limit::CallerLimit;
use crate::keyed_notify::KeyedNotify;
use crate::observe::event::Observer;
use crate::policy::builder::InvalidPolicy;
use crate::policy::overrides::{Overrides, PolicyOverride};
use crate::record::protection::AtRest;
#[cfg(feature = "metrics")]
use crate::registry::unknown_outcomes::UnknownGauge;
use crate::registry::watches::Watches;
use crate::registry::{Inner, OfRequest, Registry, Renderer};
use crate::rejection::problem::Rejection;
use crate::rejection::request::RejectedRequest;
use crate::running_limit::RunningLimit;
#[cfg(feature = "near-cache")]
use crate::store::cache::CachedStore;
use crate::store::contract::StoreAdmin;
use crate::store::erased::ErasedStore;
use crate::store::handle::StoreHandle;
use crate::sync::atomic::AtomicBool;

/// Collects the options of a [`Registry`].
///
/// # Panics and errors
///
/// An option with a wrong value panics at once, while the program starts, and says what to write instead: such values are usually
/// constants of the program. Only [`policy`](Self::policy) returns an error, because its values come from the configuration of a
/// deployment.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use axum::response::IntoResponse;
/// use idempotent_runtime::{Registry, store::MemoryStore};
///
/// let registry = Registry::builder(MemoryStore::new())
///     .store("payments", MemoryStore::new())
///     .store_timeout(Duration::from_millis(500))
///     .render_rejections(|rejection, _| (rejection.status(), rejection.code()).into_response())
///     .build();
/// ```
#[must_use = "a builder does nothing until `build`"]
pub struct RegistryBuilder {
    default: Arc<dyn ErasedStore>,
    named: BTreeMap<String, Arc<dyn ErasedStore>>,
    render: Option<Box<Renderer>>,
    problem_types: Option<Arc<str>>,
    overrides: Overrides,
    store_timeout: Duration,
    pub(super) at_rest: AtRest,
    caller: Option<Arc<OfRequest>>,
    credential_headers: Arc<[HeaderName]>,
    caller_limit: Option<Arc<CallerLimit>>,
    max_running: usize,
    max_running_per_scope: usize,
    /// The most bytes, and the highest age.
    #[cfg(feature = "near-cache")]
    near_cache: Option<(usize, Duration)>,
    pub(super) observer: Option<Box<dyn Observer>>,
    pub(super) is_disabled: bool,
}

impl fmt::Debug for RegistryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryBuilder")
            .field("named", &self.named.keys())
            .field("store_timeout", &self.store_timeout)
            .finish_non_exhaustive()
    }
}

impl RegistryBuilder {
    pub(super) fn new(default_store: impl StoreAdmin) -> Self {
        Self {
            default: Arc::new(default_store),
            named: BTreeMap::new(),
            render: None,
            problem_types: None,
            overrides: Overrides::default(),
            store_timeout: Duration::from_secs(2),
            at_rest: AtRest::default(),
            caller: None,
            credential_headers: Arc::new(idempotent_policy::CREDENTIAL_HEADERS.map(HeaderName::from_static)),
            caller_limit: None,
            max_running: 10_000,
            max_running_per_scope: 5_000,
            #[cfg(feature = "near-cache")]
            near_cache: None,
            observer: None,
            is_disabled: false,
        }
    }

    /// Adds a store for the handlers with `store = "…"`.
    ///
    /// # Panics
    ///
    /// If the name is taken.
    pub fn store(mut self, name: impl Into<String>, store: impl StoreAdmin) -> Self {
        let name = name.into();
        assert!(!self.named.contains_key(&name), "the registry already has a store named {name:?}");
        self.named.insert(name, Arc::new(store));
        self
    }

    /// Renders every rejection, instead of the problem details of RFC 9457. [`rejection::stripe`](crate::rejection::stripe)
    /// renders them for Stripe's SDKs. The request's head says what its client accepts and which languages it reads.
    ///
    /// If the renderer's response has no `Retry-After`, it gets that of the [rejection](Rejection::retry_after). A renderer that
    /// changes only some rejections returns [`RejectedRequest::problem`] for the others.
    ///
    /// Without a renderer, a client whose `Accept` does not allow JSON gets the same content as `text/plain`.
    pub fn render_rejections(
        mut self,
        render: impl Fn(Rejection, &RejectedRequest) -> Response + Send + Sync + 'static,
    ) -> Self {
        self.render = Some(Box::new(render));
        self
    }

    /// Replaces times and sizes in the policy of the annotated handlers with this scope, as the program's configuration says at
    /// start-up. [`policies`](crate::policies) shows the result once the registry is installed. A second call for the scope keeps what the first
    /// one set, and replaces only the values that it names. Each call is checked by itself.
    ///
    /// A claim or a record keeps what it was made with. Processes of one deployment should have the same values.
    /// This does not change the policy of an [`IdempotencyLayer`](crate::IdempotencyLayer). That one is made at run time: give the
    /// configured values to its [`Policy::builder`](crate::Policy::builder).
    ///
    /// # Errors
    ///
    /// If no annotated handler has the scope, as if only a layer has it. Or if a value is none that the attribute would take: a
    /// lease that is longer than the ttl, or `wait` for a handler whose duplicates do not wait.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// use std::time::Duration;
    ///
    /// use idempotent_runtime::{Registry, idempotent, policies, store::MemoryStore};
    ///
    /// #[idempotent(scope = "charges", ttl = "24h")]
    /// async fn create_charge() {}
    ///
    /// // As read from a file or the environment.
    /// let ttl = Duration::from_hours(72);
    /// Registry::builder(MemoryStore::new()).policy("charges", |policy| policy.ttl(ttl))?.build().install()?;
    /// assert_eq!(policies().next().map(|policy| policy.ttl()), Some(ttl));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn policy(
        mut self,
        scope: &str,
        change: impl FnOnce(PolicyOverride) -> PolicyOverride,
    ) -> Result<Self, InvalidPolicy> {
        self.overrides.add(scope, change(PolicyOverride::default()))?;
        Ok(self)
    }

    /// The `type` of every rejection, as your API documents it: this base and the rejection's [`code`](Rejection::code), such as
    /// `https://api.example.com/problems/in_flight`. By default it is a page of this crate's documentation.
    ///
    /// Beside [`render_rejections`](Self::render_rejections) it has an effect only where the renderer calls
    /// [`RejectedRequest::problem_type`] or [`RejectedRequest::problem`].
    ///
    /// # Panics
    ///
    /// If the base is no URI, or does not end with `/`, `#`, `=` or `:`.
    ///
    /// # Examples
    ///
    /// ```
    /// use idempotent_runtime::{Registry, store::MemoryStore};
    ///
    /// let registry = Registry::builder(MemoryStore::new()).problem_types("https://api.example.com/problems/").build();
    /// ```
    pub fn problem_types(mut self, base: &str) -> Self {
        let is_uri =
            !base.is_empty() && base.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte));
        assert!(
            is_uri,
            "the base of problem types must be a URI, such as `https://api.example.com/problems/`: {base:?}"
        );
        let ends = base.ends_with(['/', '#', '=', ':']);
        assert!(
            ends,
            "the base of problem types must end with `/`, `#`, `=` or `:`, because a code follows: write `{base}/`"
        );
        self.problem_types = Some(base.into());
        self
    }

    /// How long one call to a store may take before the store counts as unreachable; 2 s by default. `Duration::MAX` means no
    /// limit.
    ///
    /// # Panics
    ///
    /// When it is zero.
    pub fn store_timeout(mut self, limit: Duration) -> Self {
        assert!(!limit.is_zero(), "`store_timeout` must be greater than zero");
        self.store_timeout = limit;
        self
    }

    /// Names the caller of every request whose handler or layer names none: the principal that owns the key, such as a tenant
    /// or a user. Each caller has keys of its own, and may use other credentials for each attempt.
    ///
    /// The function gets the head of the request as the last extractor of its handler sees it, with the extensions that an
    /// authentication middleware has added. **Take the caller from authenticated data**: a client that can claim to be
    /// another caller gets that caller's responses. `None` means that the request has no caller. Then its credentials identify it: see
    /// [`credential_headers`](Self::credential_headers). `caller = expr` on a handler takes precedence over this function.
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

    /// The headers that identify a client if no caller is named; `Authorization`, `Proxy-Authorization`, `Cookie` and
    /// `X-Api-Key` by default. This list replaces them.
    ///
    /// All lines of these headers are part of the fingerprint. A key that comes with other values gets 422
    /// `other_credentials`, and never the response. Cookies in several lines, as HTTP/2 can send them, equal the same cookies
    /// in one line.
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

    /// How many operations of one caller can be in flight in one scope; no limit by default. Requests with one key are one
    /// operation: the one that runs, and all that wait for it.
    ///
    /// A request of another operation gets 429 with `Retry-After`. Retries of a recorded or a running request are answered as
    /// ever; to find out, the store is read, and never written. So a flood of one caller takes only a limited number of
    /// claims and handlers.
    ///
    /// The same number limits how many bodies of one caller the guard reads into memory at the same time, in all scopes together. A
    /// further body of more than 4 KiB, or of unknown length, waits for a second, and then the request gets 429 and its body is dropped. Here the caller is the one that the layer or
    /// [`caller`](Self::caller) names, or the digest of all credentials, because `caller = expr` is not known before the body is
    /// read. Requests that have neither share 1,000 permits for bodies.
    ///
    /// The caller is the one that the handler, its layer or
    /// [`caller`](Self::caller) names, or else the digest of all credentials. All requests that have neither count as one
    /// caller. Each process counts separately.
    ///
    /// # Panics
    ///
    /// When it is zero.
    pub fn max_in_flight_per_caller(mut self, most: usize) -> Self {
        assert!(most > 0, "`max_in_flight_per_caller` must be greater than zero");
        self.caller_limit = Some(Arc::new(CallerLimit::new(most)));
        self
    }

    /// How many guarded handlers can run at a time in this registry; 10,000 by default. Handlers whose clients have
    /// disconnected count until they end, which no limit on connections or requests does.
    ///
    /// A request beyond the limit gets 503 `too_many_in_flight` with `Retry-After`, and runs nothing. Retries of a recorded or
    /// a running request are answered as ever. Each process counts separately. The default is far above what a healthy
    /// service runs at a time, and low enough that clients which leave cannot exhaust the memory: at 100 KiB for each handler
    /// it is 1 GB.
    ///
    /// A request that passes two guards of different scopes, such as an annotated handler beneath an
    /// [`IdempotencyLayer`](crate::IdempotencyLayer), takes two permits. If only one is left, the inner guard answers 503.
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
    /// When it is zero.
    pub fn max_running(mut self, most: usize) -> Self {
        assert!(most > 0, "`max_running` must be greater than zero");
        self.max_running = most;
        self
    }

    /// How many guarded handlers can run at a time in each scope; 5,000 by default, so that one handler that hangs leaves
    /// permits for the others. Otherwise like [`max_running`](Self::max_running).
    ///
    /// # Panics
    ///
    /// When it is zero.
    pub fn max_running_per_scope(mut self, most: usize) -> Self {
        assert!(most > 0, "`max_running_per_scope` must be greater than zero");
        self.max_running_per_scope = most;
        self
    }

    /// Keeps the records that this process makes in its memory for `max_age`, in up to `max_bytes` for each store. A retry
    /// that reaches the same process is then replayed without asking the store. Off by default.
    ///
    /// A live record never changes, so no retry gets another response, with two exceptions:
    ///
    /// - **A purge in another process**, by `idempotent-cli` or by hand, is not seen here. This process replays the response
    ///   until `max_age` has passed, while others run the handler again. This process sees a purge by the
    ///   [`inspector`](crate::inspector) of this registry at once. It also sees a look-up there that finds nothing, under
    ///   the name of the store that was used.
    /// - **A store that loses a record**, for instance a Redis that fails over. Other processes run the handler again, while
    ///   this one replays the first response.
    ///
    /// So choose a `max_age` as long as a client retries, for instance a minute, and not as long as records live. If the
    /// memory is full, records are removed from it, and their retries ask the store again. One record can take nearly all of it.
    /// Records that are older than `max_age` are freed when later ones are kept. Results of steps are never kept. A
    /// store in memory does not need this setting. Records are kept as the store has them: sealed records stay sealed.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use idempotent_runtime::{Registry, store::StoreAdmin};
    ///
    /// fn registry(store: impl StoreAdmin) -> Registry {
    ///     Registry::builder(store).near_cache(64 * 1024 * 1024, Duration::from_secs(60)).build()
    /// }
    /// ```
    ///
    /// # Panics
    ///
    /// When either is zero.
    #[cfg(feature = "near-cache")]
    pub fn near_cache(mut self, max_bytes: usize, max_age: Duration) -> Self {
        assert!(max_bytes > 0, "`max_bytes` of the near cache must be greater than zero");
        assert!(!max_age.is_zero(), "`max_age` of the near cache must be greater than zero");
        self.near_cache = Some((max_bytes, max_age));
        self
    }

    /// The registry.
    pub fn build(self) -> Registry {
        // Only a closed tracker can be waited for; it still counts.
        let running = TaskTracker::new();
        running.close();
        let bounded = |name: &str, store| {
            #[cfg(feature = "near-cache")]
            let store = match self.near_cache {
                Some((max_bytes, max_age)) => CachedStore::in_front_of(store, max_bytes, max_age),
                None => store,
            };
            StoreHandle::new(name, store, self.store_timeout)
        };
        let default = bounded("default", self.default);
        let named: BTreeMap<_, _> =
            self.named.into_iter().map(|(name, store)| (name.clone(), bounded(&name, store))).collect();
        Registry(Arc::new(Inner {
            #[cfg(feature = "metrics")]
            unknown: UnknownGauge::new(named.values().chain([&default]).cloned().collect()),
            default,
            named,
            render: self.render,
            problem_types: self.problem_types,
            overrides: self.overrides,
            at_rest: self.at_rest,
            caller: self.caller,
            credential_headers: self.credential_headers,
            caller_limit: self.caller_limit,
            running_limit: Arc::new(RunningLimit::new(self.max_running, self.max_running_per_scope)),
            renewer: Arc::default(),
            ended_claims: KeyedNotify::default(),
            watches: Watches::default(),
            running,
            has_compared_scopes: AtomicBool::new(false),
            observer: self.observer,
            is_disabled: self.is_disabled,
        }))
    }
}

impl Registry {
    /// A registry with this default store and no options.
    pub fn new(store: impl StoreAdmin) -> Self {
        Self::builder(store).build()
    }

    /// A registry with this default store, and options to follow.
    pub fn builder(default_store: impl StoreAdmin) -> RegistryBuilder {
        RegistryBuilder::new(default_store)
    }
}
