//! Installs a registry for the program or a router, after checking that the registry has everything that the handlers
//! need.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use axum::Extension;
use http::Extensions;

use crate::observe;
use crate::observe::start_up;
use crate::policy::Policy;
use crate::policy::registration::written_policies;
use crate::registry::Registry;
use crate::registry::install_error::InstallError;
use crate::registry::scopes;
use crate::store::contract::StoreAdmin;
use crate::sync::atomic::Ordering;

/// The default size of a sqlx pool. A smaller size was chosen by the application, perhaps without considering handlers
/// that need two connections.
const MANY_CONNECTIONS: u32 = 10;

static INSTALLED: OnceLock<Registry> = OnceLock::new();

/// Installs `store` as the default store of every annotated handler, once, at start-up.
///
/// # Errors
///
/// The same as those of [`Registry::install`].
///
/// # Examples
///
/// ```standalone_crate
/// use idempotent_runtime::store::MemoryStore;
///
/// idempotent_runtime::install(MemoryStore::new())?;
/// # Ok::<(), idempotent_runtime::InstallError>(())
/// ```
pub fn install(store: impl StoreAdmin) -> Result<Registry, InstallError> {
    Registry::new(store).install()
}

/// Returns every annotated handler of the program, ordered by module, name and location. The policies are those under
/// the installed registry, if there is one: with the changes of its [`policy`](crate::RegistryBuilder::policy).
///
/// The references are `'static` without a leak: a handler's policy is a constant of the program, and the installed
/// registry, which keeps the changed ones, is never removed.
///
/// # Examples
///
/// ```standalone_crate
/// assert_eq!(idempotent_runtime::policies().count(), 0, "this program has no annotated handler");
/// ```
pub fn policies() -> impl Iterator<Item = &'static Policy> {
    let installed = INSTALLED.get();
    written_policies().map(move |policy| installed.map_or(policy, |registry| registry.overrides().over(policy)))
}

impl Registry {
    /// Makes this the registry of every annotated handler whose router does not have its own registry.
    ///
    /// With the feature `metrics`, the series of all annotated handlers begin at 0 now, if a recorder is installed.
    ///
    /// `install` can log three warnings:
    ///
    /// - the handlers without a caller, if the registry has no [`caller`](crate::RegistryBuilder::caller) either: such
    ///   a handler rejects a client that renews its credentials between two attempts;
    /// - each store whose handlers take a [`Tx`](crate::Tx) from a pool of fewer than ten connections, because a
    ///   handler that takes a second connection can exhaust the pool;
    /// - each store in memory whose handlers have `after_crash = "reject"`, because it forgets their claims with its
    ///   process.
    ///
    /// # Errors
    ///
    /// If a registry is already installed; if a handler names a store that this registry does not have; if two handlers
    /// have one scope and not both say `shared_scope`. Two methods of one name in one module have the same default
    /// scope.
    pub fn install(self) -> Result<Self, InstallError> {
        self.check(written_policies())?;
        INSTALLED.set(self.clone()).map_err(|_| InstallError::AlreadyInstalled)?;
        self.begin_series();
        if self.0.caller.is_none() {
            start_up::without_caller(written_policies());
        }
        self.warn_of_small_pools(written_policies());
        self.warn_of_forgotten_claims(written_policies());
        Ok(self)
    }

    /// Returns the installed registry.
    pub fn installed() -> Option<Self> {
        INSTALLED.get().cloned()
    }

    /// Returns the registry of a request: that of the layer around its route, or the installed one.
    pub(crate) fn serving(extensions: &Extensions) -> Option<Self> {
        extensions.get::<Self>().cloned().or_else(Self::installed)
    }

    /// Returns a layer that gives this registry to the routes under it. This registry takes precedence over the
    /// installed one.
    ///
    /// `layer` cannot return the errors of [`install`](Self::install). If handlers have one scope without
    /// `shared_scope` on each, an ERROR is logged, once for each registry. Handlers that have the same default scope
    /// answer 503.
    pub fn layer(&self) -> Extension<Self> {
        self.compare_scopes();
        Extension(self.clone())
    }

    fn check(&self, policies: impl Iterator<Item = &'static Policy>) -> Result<(), InstallError> {
        if self.is_disabled() {
            return Ok(());
        }
        let policies: Vec<_> = policies.collect();
        for &policy in &policies {
            if let Some(name) = policy.store()
                && !self.0.named.contains_key(name)
            {
                let known = self.0.named.keys().cloned().collect();
                return Err(InstallError::UnknownStore { name: name.to_owned(), handler: policy.to_string(), known });
            }
            if let (Some(wanted), Some(store)) = (policy.database(), self.store_named(policy.store())) {
                let found = store.transactions().map(|transactions| transactions.database);
                if found != Some(wanted) {
                    return Err(InstallError::NoTransactions {
                        handler: policy.to_string(),
                        wanted: wanted.to_owned(),
                        found: found.map(str::to_owned),
                    });
                }
            }
        }
        let Some((one, other)) = scopes::conflicts(policies.into_iter()).next() else { return Ok(()) };
        let (scope, first, second) = (one.scope().to_owned(), one.to_string(), other.to_string());
        Err(if one.settings().has_default_scope && other.settings().has_default_scope {
            InstallError::SharedDefaultScope { scope, first, second }
        } else {
            InstallError::SharedScope { scope, first, second }
        })
    }

    /// Warns about handlers that must not run again and whose claims end with the process.
    fn warn_of_forgotten_claims(&self, policies: impl Iterator<Item = &'static Policy>) {
        for (name, handlers) in by_store(policies.filter(|policy| !policy.after_crash().may_rerun())) {
            // A store that answers at once is in this process's memory.
            if self.store_named(name).is_some_and(|store| store.immediate().is_some()) {
                start_up::forgotten_claims(name.unwrap_or("default"), &handlers);
            }
        }
    }

    /// Warns about small pools. A handler holds the connection of its `Tx` while it waits for a second one of the same
    /// pool. All of them stall when as many such handlers run as the pool has connections.
    fn warn_of_small_pools(&self, policies: impl Iterator<Item = &'static Policy>) {
        for (name, handlers) in by_store(policies.filter(|policy| policy.database().is_some())) {
            let transactions = self.store_named(name).and_then(|store| store.transactions());
            let connections = transactions.and_then(|transactions| transactions.holder.connections());
            if let Some(connections) = connections.filter(|&connections| connections < MANY_CONNECTIONS) {
                start_up::small_pool(name.unwrap_or("default"), connections, &handlers);
            }
        }
    }

    fn begin_series(&self) {
        let stores = self.0.named.values().chain([&self.0.default]);
        observe::begin_series(stores.map(|store| store.name()));
    }

    /// Logs, once for each registry, the conflicts of explicit scopes that `install` would have reported.
    fn compare_scopes(&self) {
        if self.is_disabled() {
            return;
        }
        if self.0.has_compared_scopes.swap(true, Ordering::Relaxed) {
            return;
        }
        self.begin_series();
        for (first, second) in scopes::conflicts(written_policies()) {
            // Requests of handlers with the same default scope are rejected, and each rejection is logged with the
            // reason.
            if !(first.settings().has_default_scope && second.settings().has_default_scope) {
                start_up::shared_scope(first, second);
            }
        }
    }
}

/// Returns the handlers by the name of their store.
fn by_store(policies: impl Iterator<Item = &'static Policy>) -> BTreeMap<Option<&'static str>, Vec<String>> {
    let mut by_store = BTreeMap::<_, Vec<_>>::new();
    for policy in policies {
        by_store.entry(policy.store()).or_default().push(policy.handler());
    }
    by_store
}
