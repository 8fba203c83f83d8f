//! Collects the options of a registry.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use http::HeaderName;
use tokio_util::task::TaskTracker;

use crate::caller_limit::CallerLimit;
use crate::keyed_notify::KeyedNotify;
use crate::observe::event::Observer;
use crate::policy::invalid_policy::InvalidPolicy;
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
/// An option with a wrong value panics at once, while the program starts, and says what to write instead: such values
/// are usually constants of the program. Only [`policy`](Self::policy) returns an error, because its values come from
/// the configuration of a deployment.
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
    pub(super) caller: Option<Arc<OfRequest>>,
    pub(super) credential_headers: Arc<[HeaderName]>,
    pub(super) caller_limit: Option<Arc<CallerLimit>>,
    pub(super) max_running: usize,
    pub(super) max_running_per_scope: usize,
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

    /// Renders every rejection with this function, instead of the problem details of RFC 9457.
    /// [`rejection::stripe`](crate::rejection::stripe) renders rejections for Stripe's SDKs. The request's head says
    /// which media types and languages its client accepts.
    ///
    /// If the renderer's response has no `Retry-After`, the response gets that of the
    /// [rejection](Rejection::retry_after). A renderer that changes only some rejections returns
    /// [`RejectedRequest::problem`] for the others.
    ///
    /// Without a renderer, a client whose `Accept` does not allow JSON gets the same content as `text/plain`.
    pub fn render_rejections(
        mut self,
        render: impl Fn(Rejection, &RejectedRequest) -> Response + Send + Sync + 'static,
    ) -> Self {
        self.render = Some(Box::new(render));
        self
    }

    /// Replaces times and sizes in the policy of the annotated handlers with this scope, as the program's configuration
    /// says at start-up. [`policies`](crate::policies) shows the result once the registry is installed. A second call
    /// for the scope keeps the values of the first call, and replaces only the values that it names. Each call is
    /// checked by itself.
    ///
    /// An existing claim or record keeps the values with which it was made. Processes of one deployment should have the
    /// same values. This option does not change the policy of an [`IdempotencyLayer`](crate::IdempotencyLayer). Such a
    /// policy is made at run time: give the configured values to its [`Policy::builder`](crate::Policy::builder).
    ///
    /// # Errors
    ///
    /// If no annotated handler has the scope, for example because only a layer has it. Or if the attribute would not
    /// accept a value: a lease that is longer than the ttl, or `wait` for a handler whose duplicates do not wait.
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
    /// let ttl = Duration::from_secs(72 * 60 * 60);
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

    /// Sets the `type` of every rejection, as your API documents it: this base and the rejection's
    /// [`code`](Rejection::code), such as `https://api.example.com/problems/in_flight`. The default is a page of this
    /// crate's documentation.
    ///
    /// Together with [`render_rejections`](Self::render_rejections), this option has an effect only where the renderer
    /// calls [`RejectedRequest::problem_type`] or [`RejectedRequest::problem`].
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

    /// Sets how long one call to a store may take before the store counts as unreachable; 2 s by default.
    /// `Duration::MAX` means no limit.
    ///
    /// # Panics
    ///
    /// If `limit` is zero.
    pub fn store_timeout(mut self, limit: Duration) -> Self {
        assert!(!limit.is_zero(), "`store_timeout` must be greater than zero");
        self.store_timeout = limit;
        self
    }

    /// Keeps the records that this process makes in its memory for `max_age`, in up to `max_bytes` for each store. A
    /// retry that reaches the same process is then replayed without asking the store. Off by default.
    ///
    /// A live record never changes, so no retry gets another response, with two exceptions:
    ///
    /// - **A purge in another process**, by `idempotent-cli` or by hand, is not seen by this process. It replays the
    ///   response until `max_age` has passed, while other processes run the handler again. A purge by the
    ///   [`inspector`](crate::inspector) of this registry removes the response from this process at once. So does a
    ///   look-up in that inspector that finds nothing, if it names the store as the handler does.
    /// - **A store that loses a record**, for instance a Redis that fails over. Other processes run the handler again,
    ///   while this process replays the first response.
    ///
    /// So choose a `max_age` as long as a client retries, for instance a minute, and not as long as records live. If
    /// the memory is full, records are removed from it, and their retries read the store again. One record can take
    /// nearly all of the memory. Records that are older than `max_age` are freed when later records are kept. Results
    /// of steps are never kept. A store in memory does not need this setting. Records are kept as the store has them:
    /// sealed records stay sealed.
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
    /// If `max_bytes` or `max_age` is zero.
    #[cfg(feature = "near-cache")]
    pub fn near_cache(mut self, max_bytes: usize, max_age: Duration) -> Self {
        assert!(max_bytes > 0, "`max_bytes` of the near cache must be greater than zero");
        assert!(!max_age.is_zero(), "`max_age` of the near cache must be greater than zero");
        self.near_cache = Some((max_bytes, max_age));
        self
    }

    /// Builds the registry.
    pub fn build(self) -> Registry {
        // Only a closed tracker can be awaited. A closed tracker still counts new tasks.
        let running = TaskTracker::new();
        running.close();
        let handle_of = |name: &str, store| {
            #[cfg(feature = "near-cache")]
            let store = match self.near_cache {
                Some((max_bytes, max_age)) => CachedStore::in_front_of(store, max_bytes, max_age),
                None => store,
            };
            StoreHandle::new(name, store, self.store_timeout)
        };
        let default = handle_of("default", self.default);
        let named: BTreeMap<_, _> =
            self.named.into_iter().map(|(name, store)| (name.clone(), handle_of(&name, store))).collect();
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
            running_limit: RunningLimit::new(self.max_running, self.max_running_per_scope),
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
    /// Creates a registry with this default store and no options.
    pub fn new(store: impl StoreAdmin) -> Self {
        Self::builder(store).build()
    }

    /// Creates a builder of a registry with this default store.
    pub fn builder(default_store: impl StoreAdmin) -> RegistryBuilder {
        RegistryBuilder::new(default_store)
    }
}
