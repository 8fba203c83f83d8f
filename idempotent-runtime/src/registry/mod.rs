//! The stores by name and how refusals are rendered: installed once at start-up, or layered onto one router.

mod build;
mod install_error;
mod scopes;
mod settled;
#[cfg(feature = "testing")]
mod testing;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use axum::Extension;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{Extensions, HeaderName};
use tokio_util::task::TaskTracker;

pub use self::build::RegistryBuilder;
pub use self::install_error::InstallError;
use self::settled::Settled;
use crate::at_rest::AtRest;
use crate::crowding::CallerLimit;
use crate::deadline::Deadline;
use crate::engine::Watches;
use crate::lease::Keeper;
use crate::metering::UnknownGauge;
use crate::store::{BoundedStore, Store};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::witness::Event;
use crate::{Policy, Refusal, policies, telemetry};

/// What an application says of a request by its head: whose it is, or which key it has.
pub(crate) type OfRequest = dyn Fn(&Parts) -> Option<String> + Send + Sync;

/// As many as a pool of sqlx has unless told otherwise: a smaller one was chosen, perhaps without a thought of handlers that
/// take two.
const MANY_CONNECTIONS: u32 = 10;

static INSTALLED: OnceLock<Registry> = OnceLock::new();

/// Installs `store` as the default store of every annotated handler, once, at start-up.
///
/// # Errors
///
/// As [`Registry::install`].
///
/// # Examples
///
/// ```standalone_crate
/// use idempotent_runtime::store::MemoryStore;
///
/// idempotent_runtime::install(MemoryStore::new())?;
/// # Ok::<(), idempotent_runtime::InstallError>(())
/// ```
pub fn install(store: impl Store) -> Result<Registry, InstallError> {
    Registry::new(store).install()
}

/// The stores by name, and how refusals are rendered. A clone is cheap and shares everything.
///
/// # Examples
///
/// ```
/// use axum::{Router, routing::post};
/// use idempotent_runtime::{Registry, idempotent, store::MemoryStore};
///
/// #[idempotent]
/// async fn create_charge() -> &'static str {
///     "charged"
/// }
///
/// // A registry of this router's own, so that tests run side by side.
/// let registry = Registry::new(MemoryStore::new());
/// let app: Router = Router::new().route("/charges", post(create_charge)).layer(registry.layer());
/// ```
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    default: BoundedStore,
    named: BTreeMap<String, BoundedStore>,
    render: Option<Box<dyn Fn(Refusal) -> Response + Send + Sync>>,
    at_rest: AtRest,
    caller: Option<Arc<OfRequest>>,
    credential_headers: Arc<[HeaderName]>,
    caller_limit: Option<Arc<CallerLimit>>,
    keeper: Arc<Keeper>,
    settled: Settled,
    watches: Watches,
    running: TaskTracker,
    unknown: UnknownGauge,
    has_compared_scopes: AtomicBool,
    #[cfg(feature = "testing")]
    testing: self::testing::Testing,
}

impl Registry {
    /// A registry with this default store and no options.
    pub fn new(store: impl Store) -> Self {
        Self::builder(store).build()
    }

    /// A registry with this default store, and options to follow.
    pub fn builder(default_store: impl Store) -> RegistryBuilder {
        RegistryBuilder::new(default_store)
    }

    /// Makes this the registry of every annotated handler whose router has none of its own.
    ///
    /// It warns once, in one line, of the handlers that name no caller, if the registry has no
    /// [`caller`](RegistryBuilder::caller) either: a client that renews its credentials between two attempts is rejected
    /// there. And it warns of each store whose handlers take a [`Tx`](crate::Tx) from a pool of fewer than ten connections,
    /// which such a handler may exhaust if it takes a second one.
    ///
    /// # Errors
    ///
    /// When one is installed already; when a handler names a store that is not here; when two handlers have one scope,
    /// unless both say `shared_scope`. Two methods of one name in one module have one default scope.
    pub fn install(self) -> Result<Self, InstallError> {
        self.check(policies())?;
        INSTALLED.set(self.clone()).map_err(|_| InstallError::AlreadyInstalled)?;
        if self.0.caller.is_none() {
            telemetry::without_caller(policies());
        }
        self.warn_of_small_pools(policies());
        Ok(self)
    }

    /// The installed registry.
    pub fn installed() -> Option<Self> {
        INSTALLED.get().cloned()
    }

    /// The registry of a request: that of the layer around its route, or the installed one.
    pub(crate) fn serving(extensions: &Extensions) -> Option<Self> {
        extensions.get::<Self>().cloned().or_else(Self::installed)
    }

    /// A layer that gives the routes under it this registry; it goes before the installed one.
    ///
    /// What [`install`](Self::install) would reject, it cannot: handlers that have one scope without `shared_scope` on each
    /// are logged at ERROR, once for each registry, and handlers that have one default scope answer 503.
    pub fn layer(&self) -> Extension<Self> {
        self.compare_scopes();
        Extension(self.clone())
    }

    /// Waits until no guarded handler runs any more, those included that outlived their client; for at most `limit`, and
    /// without a limit for `Duration::MAX`.
    ///
    /// Call it at shutdown, after the server has stopped to accept requests. The answer is how many were still
    /// running: their keys are free again, or refused, when their leases have run out.
    ///
    /// A request that waits for another one (`in_flight = wait`) executes nothing, and is not waited for.
    ///
    /// It also waits for claims under which nothing ran and whose answer was lost, until they are given back: they count as no
    /// handler, but under `after_crash = "refuse"` one that stays would refuse its key.
    ///
    /// # Cancel safety
    ///
    /// Dropping the wait changes nothing.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use axum::Router;
    /// use idempotent_runtime::Registry;
    ///
    /// async fn serve(app: Router, registry: Registry) -> std::io::Result<()> {
    ///     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    ///     let stop = async { _ = tokio::signal::ctrl_c().await };
    ///     axum::serve(listener, app.layer(registry.layer())).with_graceful_shutdown(stop).await?;
    ///     let left = registry.drain(Duration::from_secs(30)).await;
    ///     eprintln!("{left} handlers were still running");
    ///     Ok(())
    /// }
    /// ```
    pub async fn drain(&self, limit: Duration) -> usize {
        let running = &self.0.running;
        let stores = || std::iter::once(&self.0.default).chain(self.0.named.values());
        let ended = async {
            running.wait().await;
            for store in stores() {
                store.until_given_back().await;
            }
        };
        let _ = Deadline::after(limit).bound(ended).await;
        let unwanted: usize = stores().map(BoundedStore::given_back).sum();
        if unwanted > 0 {
            tracing::warn!(
                claims = unwanted,
                "claims under which nothing ran are still being given back at the end of the drain: they stay until their \
                 leases are over, and under `after_crash = \"refuse\"` until an operator purges them"
            );
        }
        let left = running.len();
        if left > 0 {
            tracing::warn!(left, "guarded handlers are still running at the end of the drain");
        }
        left
    }

    /// The store of the handler; `None` when this registry cannot serve it.
    pub(crate) fn store_for(&self, policy: &Policy) -> Option<&BoundedStore> {
        // `install` would have said so; a layer is only told by the requests that come.
        if policy.default_scope && shared_default_scopes().contains(policy.scope) {
            return None;
        }
        self.0.unknown.start();
        self.store_named(policy.store)
    }

    pub(crate) fn store_named(&self, name: Option<&str>) -> Option<&BoundedStore> {
        match name {
            None => Some(&self.0.default),
            Some(name) => self.0.named.get(name),
        }
    }

    /// The names of the stores beside the default one.
    #[cfg(feature = "inspector")]
    pub(crate) fn store_names(&self) -> impl Iterator<Item = &str> {
        self.0.named.keys().map(String::as_str)
    }

    /// The answer to a request of this scope that is refused.
    pub(crate) fn refuse(&self, scope: &str, refusal: Refusal) -> Response {
        self.tell(scope, Event::Refused(refusal.code()));
        self.render(refusal)
    }

    pub(crate) fn render(&self, refusal: Refusal) -> Response {
        match &self.0.render {
            Some(render) => render(refusal),
            None => refusal.into_response(),
        }
    }

    #[cfg(any(feature = "utoipa", feature = "aide"))]
    pub(crate) fn renders_refusals(&self) -> bool {
        self.0.render.is_some()
    }

    pub(crate) fn at_rest(&self) -> &AtRest {
        &self.0.at_rest
    }

    pub(crate) fn caller(&self) -> Option<&OfRequest> {
        self.0.caller.as_deref()
    }

    pub(crate) fn credential_headers(&self) -> &[HeaderName] {
        &self.0.credential_headers
    }

    pub(crate) fn caller_limit(&self) -> Option<&Arc<CallerLimit>> {
        self.0.caller_limit.as_ref()
    }

    pub(crate) fn keeper(&self) -> &Arc<Keeper> {
        &self.0.keeper
    }

    pub(crate) fn settled(&self) -> &Settled {
        &self.0.settled
    }

    pub(crate) fn watches(&self) -> &Watches {
        &self.0.watches
    }

    pub(crate) fn running(&self) -> &TaskTracker {
        &self.0.running
    }

    fn check(&self, policies: impl Iterator<Item = &'static Policy>) -> Result<(), InstallError> {
        #[cfg(feature = "testing")]
        if self.is_disabled() {
            return Ok(());
        }
        let policies: Vec<_> = policies.collect();
        for &policy in &policies {
            if let Some(name) = policy.store
                && !self.0.named.contains_key(name)
            {
                let known = self.0.named.keys().cloned().collect();
                return Err(InstallError::UnknownStore { name, handler: policy, known });
            }
            if let (Some(wanted), Some(store)) = (policy.database, self.store_named(policy.store)) {
                let found = store.transactions().map(|transactions| transactions.database);
                if found != Some(wanted) {
                    return Err(InstallError::NoTransactions { handler: policy, wanted, found });
                }
            }
        }
        match scopes::conflicts(policies.into_iter()).next() {
            Some((first, second)) if first.default_scope && second.default_scope => {
                Err(InstallError::SharedDefaultScope { first, second })
            }
            Some((first, second)) => Err(InstallError::SharedScope { first, second }),
            None => Ok(()),
        }
    }

    /// A handler that holds the connection of its `Tx` while it waits for a second one of the pool stalls once as many of them
    /// run as the pool has connections.
    fn warn_of_small_pools(&self, policies: impl Iterator<Item = &'static Policy>) {
        let mut by_store = BTreeMap::<_, Vec<_>>::new();
        for policy in policies.filter(|policy| policy.database.is_some()) {
            by_store.entry(policy.store).or_default().push(policy.handler());
        }
        for (name, handlers) in by_store {
            let transactions = self.store_named(name).and_then(BoundedStore::transactions);
            let connections = transactions.and_then(|transactions| transactions.holder.connections());
            if let Some(connections) = connections.filter(|&connections| connections < MANY_CONNECTIONS) {
                telemetry::small_pool(name.unwrap_or("default"), connections, &handlers);
            }
        }
    }

    /// Says once what `install` would have said of explicit scopes.
    fn compare_scopes(&self) {
        #[cfg(feature = "testing")]
        if self.is_disabled() {
            return;
        }
        if self.0.has_compared_scopes.swap(true, Ordering::Relaxed) {
            return;
        }
        for (first, second) in scopes::conflicts(policies()) {
            // Requests of those with one default scope are rejected, and each says why.
            if !(first.default_scope && second.default_scope) {
                telemetry::shared_scope(first, second);
            }
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("named", &self.0.named.keys())
            .field("running", &self.0.running.len())
            .finish_non_exhaustive()
    }
}

/// The default scopes that several handlers have: one of them could replay the other's responses.
fn shared_default_scopes() -> &'static HashSet<&'static str> {
    static SHARED: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
        let mut seen = HashSet::new();
        policies()
            .filter(|policy| policy.default_scope)
            .map(|policy| policy.scope)
            .filter(|scope| !seen.insert(*scope))
            .collect()
    });
    &SHARED
}
