//! The stores by name and how refusals are rendered: installed once at start-up, or layered onto one router.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::BuildHasher;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use axum::Extension;
use axum::response::{IntoResponse, Response};
use tokio_util::task::TaskTracker;

use crate::lease::Keeper;
use crate::store::{BoundedStore, ErasedStore, Store};
use crate::sync::tokio::sync::Notify;
use crate::sync::{KeyHasher, tokio};
use crate::{Policy, RecordKey, Refusal, policies};

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
    keeper: Arc<Keeper>,
    settled: Settled,
    running: TaskTracker,
}

impl Registry {
    /// A registry with this default store and no options.
    pub fn new(store: impl Store) -> Self {
        Self::builder(store).build()
    }

    /// A registry with this default store, and options to follow.
    pub fn builder(default_store: impl Store) -> RegistryBuilder {
        RegistryBuilder {
            default: Arc::new(default_store),
            named: BTreeMap::new(),
            render: None,
            store_timeout: Duration::from_secs(2),
        }
    }

    /// Makes this the registry of every annotated handler whose router has none of its own.
    ///
    /// # Errors
    ///
    /// When one is installed already; when a handler names a store that is not here; when two handlers share a default
    /// scope, as two methods of one name in one module do.
    pub fn install(self) -> Result<Self, InstallError> {
        self.check(policies())?;
        INSTALLED.set(self.clone()).map_err(|_| InstallError::AlreadyInstalled)?;
        Ok(self)
    }

    /// The installed registry.
    pub fn installed() -> Option<Self> {
        INSTALLED.get().cloned()
    }

    /// A layer that gives the routes under it this registry; it goes before the installed one.
    pub fn layer(&self) -> Extension<Self> {
        Extension(self.clone())
    }

    /// Waits until no guarded handler runs any more, those included that outlived their client; for at most `limit`.
    ///
    /// Call it at shutdown, after the server has stopped to accept requests. The answer is how many were still
    /// running: their keys are free again, or refused, when their leases have run out.
    ///
    /// # Cancel safety
    ///
    /// Dropping the wait changes nothing.
    pub async fn drain(&self, limit: Duration) -> usize {
        let running = &self.0.running;
        let _ = tokio::time::timeout(limit, running.wait()).await;
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
        self.store_named(policy.store)
    }

    fn store_named(&self, name: Option<&str>) -> Option<&BoundedStore> {
        match name {
            None => Some(&self.0.default),
            Some(name) => self.0.named.get(name),
        }
    }

    pub(crate) fn render(&self, refusal: Refusal) -> Response {
        match &self.0.render {
            Some(render) => render(refusal),
            None => refusal.into_response(),
        }
    }

    pub(crate) fn keeper(&self) -> &Arc<Keeper> {
        &self.0.keeper
    }

    pub(crate) fn settled(&self) -> &Settled {
        &self.0.settled
    }

    pub(crate) fn running(&self) -> &TaskTracker {
        &self.0.running
    }

    fn check(&self, policies: impl Iterator<Item = &'static Policy>) -> Result<(), InstallError> {
        let mut default_scopes = HashMap::new();
        for policy in policies {
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
            if policy.default_scope
                && let Some(first) = default_scopes.insert(policy.scope, policy)
            {
                return Err(InstallError::SharedDefaultScope { first, second: policy });
            }
        }
        Ok(())
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

/// Collects the options of a [`Registry`].
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
///     .render_refusals(|refusal| (refusal.status(), refusal.code()).into_response())
///     .build();
/// ```
#[must_use = "a builder does nothing until `build`"]
pub struct RegistryBuilder {
    default: Arc<dyn ErasedStore>,
    named: BTreeMap<String, Arc<dyn ErasedStore>>,
    render: Option<Box<dyn Fn(Refusal) -> Response + Send + Sync>>,
    store_timeout: Duration,
}

impl RegistryBuilder {
    /// Adds the store that handlers name by `store = "…"`.
    ///
    /// # Panics
    ///
    /// When the name is taken.
    pub fn store(mut self, name: impl Into<String>, store: impl Store) -> Self {
        let name = name.into();
        assert!(!self.named.contains_key(&name), "the registry already has a store named {name:?}");
        self.named.insert(name, Arc::new(store));
        self
    }

    /// Renders every refusal, in place of the problem details of RFC 9457.
    pub fn render_refusals(mut self, render: impl Fn(Refusal) -> Response + Send + Sync + 'static) -> Self {
        self.render = Some(Box::new(render));
        self
    }

    /// How long one call of a store may take before it counts as unreachable; 2 s by default.
    ///
    /// # Panics
    ///
    /// When it is zero.
    pub fn store_timeout(mut self, limit: Duration) -> Self {
        assert!(!limit.is_zero(), "a store needs some time to answer");
        self.store_timeout = limit;
        self
    }

    /// The registry.
    pub fn build(self) -> Registry {
        // Only a closed tracker can be waited for; it counts on all the same.
        let running = TaskTracker::new();
        running.close();
        let bounded = |name: &str, store| BoundedStore::new(name, store, self.store_timeout);
        Registry(Arc::new(Inner {
            default: bounded("default", self.default),
            named: self.named.into_iter().map(|(name, store)| (name.clone(), bounded(&name, store))).collect(),
            render: self.render,
            keeper: Arc::default(),
            settled: Settled::default(),
            running,
        }))
    }
}

/// Why a registry was not installed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// One is installed already.
    #[error(
        "a registry is already installed; install once at start-up, and use `router.layer(registry.layer())` for others"
    )]
    AlreadyInstalled,
    /// A handler names a store that the registry does not have.
    #[error(
        "the handler {handler} names the store {name:?}, but the registry has {}; \
         add it with `Registry::builder(default_store).store({name:?}, store)`",
        named(known)
    )]
    #[non_exhaustive]
    UnknownStore {
        /// The name in the attribute.
        name: &'static str,
        /// The handler.
        handler: &'static Policy,
        /// The names that the registry has.
        known: Vec<String>,
    },
    /// A handler takes a `Tx` of another database than its store is on.
    #[error(
        "the handler {handler} takes a transaction of {wanted}, but its store has {}; \
         give it a store on that database, with `store = \"…\"` if it is not the default one",
        found.map_or_else(|| "none".to_owned(), |found| format!("those of {found}"))
    )]
    #[non_exhaustive]
    NoTransactions {
        /// The handler.
        handler: &'static Policy,
        /// The database of its `Tx`.
        wanted: &'static str,
        /// The database of its store, if that has transactions.
        found: Option<&'static str>,
    },
    /// Two handlers have the same default scope, so that one could replay the other's responses.
    #[error(
        "the handlers {first} and {second} have the same default scope {:?}; give each its own with `scope = \"…\"`",
        first.scope()
    )]
    #[non_exhaustive]
    SharedDefaultScope {
        /// One of them.
        first: &'static Policy,
        /// The other.
        second: &'static Policy,
    },
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

fn named(known: &[String]) -> String {
    if known.is_empty() {
        return "no named stores".to_owned();
    }
    let quoted: Vec<String> = known.iter().map(|name| format!("{name:?}")).collect();
    format!("only {}", quoted.join(", "))
}

/// Wakes this process's waiters when a claim has ended.
pub(crate) struct Settled {
    hasher: KeyHasher,
    // Keys that share a bell wake each other for nothing, which costs one more look.
    bells: [Notify; 64],
}

impl Default for Settled {
    fn default() -> Self {
        Self { hasher: KeyHasher::default(), bells: std::array::from_fn(|_| Notify::new()) }
    }
}

impl Settled {
    pub(crate) fn bell(&self, key: &RecordKey) -> &Notify {
        &self.bells[usize::try_from(self.hasher.hash_one(key) % 64).unwrap_or_default()]
    }
}
