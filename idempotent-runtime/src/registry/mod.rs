//! The registry: the stores by name, and the settings of all handlers. It is installed once at start-up, or layered
//! onto one router.

pub(crate) mod build;
mod callers;
pub(crate) mod install;
pub(crate) mod install_error;
mod limits;
pub(crate) mod private_data;
pub(crate) mod scopes;
#[cfg(feature = "testing")]
pub(crate) mod testing;
#[cfg(feature = "metrics")]
pub(crate) mod unknown_outcomes;
pub(crate) mod watches;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::response::Response;
use http::request::Parts;
use http::{HeaderMap, HeaderName, header};
use tokio_util::task::TaskTracker;

use crate::caller_limit::CallerLimit;
use crate::deadline::Deadline;
use crate::keyed_notify::KeyedNotify;
use crate::lease::renewer::LeaseRenewer;
use crate::observe::event::{Event, Observer};
use crate::policy::Policy;
use crate::policy::overrides::Overrides;
use crate::policy::registration::written_policies;
use crate::record::protection::AtRest;
#[cfg(feature = "metrics")]
use crate::registry::unknown_outcomes::UnknownGauge;
use crate::registry::watches::Watches;
use crate::rejection::mark::marked;
use crate::rejection::problem::Rejection;
use crate::rejection::request::{Audience, RejectedRequest};
use crate::running_limit::RunningLimit;
use crate::store::handle::StoreHandle;
use crate::sync::atomic::AtomicBool;

/// A function of the application that returns the caller or the key of a request from its head.
pub(crate) type OfRequest = dyn Fn(&Parts) -> Option<String> + Send + Sync;

/// A function of the application that renders a rejection.
pub(crate) type Renderer = dyn Fn(Rejection, &RejectedRequest) -> Response + Send + Sync;

/// The stores by name, and the settings of all handlers. A clone is cheap and shares everything.
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
pub struct Registry(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) default: StoreHandle,
    pub(super) named: BTreeMap<String, StoreHandle>,
    pub(super) render: Option<Box<Renderer>>,
    pub(super) problem_types: Option<Arc<str>>,
    pub(super) overrides: Overrides,
    pub(super) at_rest: AtRest,
    pub(super) caller: Option<Arc<OfRequest>>,
    pub(super) credential_headers: Arc<[HeaderName]>,
    pub(super) caller_limit: Option<Arc<CallerLimit>>,
    pub(super) running_limit: RunningLimit,
    pub(super) renewer: Arc<LeaseRenewer>,
    pub(super) ended_claims: KeyedNotify,
    pub(super) watches: Watches,
    pub(super) running: TaskTracker,
    #[cfg(feature = "metrics")]
    pub(super) unknown: UnknownGauge,
    pub(super) has_compared_scopes: AtomicBool,
    pub(super) observer: Option<Box<dyn Observer>>,
    pub(super) is_disabled: bool,
}

impl Registry {
    /// Waits until no guarded handler runs any more, including handlers whose clients have disconnected. Waits for at
    /// most `limit`; `Duration::MAX` means no limit.
    ///
    /// Call it at shutdown, after the server has stopped accepting requests. Returns how many handlers still run. When
    /// their leases have expired, their retries run again or are rejected, as `after_crash` says.
    ///
    /// `drain` does not wait for a request that waits for another one (`in_flight = wait`), because such a request
    /// executes nothing.
    ///
    /// `drain` also waits until claims under which nothing ran are released, if the store's answer to the claim was
    /// lost. These claims do not count as handlers, but under `after_crash = "reject"` such a claim would reject later
    /// requests with its key if it stayed.
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
        let unwanted: usize = stores().map(StoreHandle::given_back).sum();
        if unwanted > 0 {
            tracing::warn!(
                claims = unwanted,
                "claims under which nothing ran are still being given back at the end of the drain: they stay until their \
                 leases expire, and under `after_crash = \"reject\"` until an operator resolves them"
            );
        }
        let left = running.len();
        if left > 0 {
            tracing::warn!(left, "guarded handlers are still running at the end of the drain");
        }
        left
    }

    /// Returns the changes that the registry makes to the policies of handlers.
    pub(crate) fn overrides(&self) -> &Overrides {
        &self.0.overrides
    }

    /// Returns the policies of all annotated handlers under this registry.
    #[cfg(feature = "operate")]
    pub(crate) fn policies(&self) -> impl Iterator<Item = &Policy> {
        written_policies().map(|written| self.0.overrides.over(written))
    }

    /// Returns the store of the handler. Returns `None` if this registry cannot serve the handler.
    pub(crate) fn store_for(&self, policy: &Policy) -> Option<&StoreHandle> {
        // `install` would have reported the shared scope. A layer learns of handlers only from their requests.
        if policy.settings().has_default_scope && shared_default_scopes().contains(policy.scope()) {
            return None;
        }
        #[cfg(feature = "metrics")]
        self.0.unknown.start();
        self.store_named(policy.store())
    }

    pub(crate) fn store_named(&self, name: Option<&str>) -> Option<&StoreHandle> {
        match name {
            None => Some(&self.0.default),
            Some(name) => self.0.named.get(name),
        }
    }

    /// Returns the names of the stores besides the default one.
    #[cfg(feature = "inspector")]
    pub(crate) fn store_names(&self) -> impl Iterator<Item = &str> {
        self.0.named.keys().map(String::as_str)
    }

    /// Returns the response to a rejected request of this scope.
    pub(crate) fn reject(&self, scope: &str, rejection: Rejection, audience: &Audience) -> Response {
        self.observe(scope, Event::Rejected(rejection.code()));
        Self::render(Some(self), rejection, audience)
    }

    pub(crate) fn observe(&self, scope: &str, event: Event) {
        if let Some(observer) = &self.0.observer {
            observer.observe(scope, event);
        }
    }

    /// Returns whether handlers run unguarded. Only the feature `testing` creates such a registry.
    pub(crate) fn is_disabled(&self) -> bool {
        self.0.is_disabled
    }

    /// Renders a rejection, even without a registry.
    pub(crate) fn render(registry: Option<&Self>, rejection: Rejection, audience: &Audience) -> Response {
        let Some(render) = registry.and_then(|registry| registry.0.render.as_ref()) else {
            let types = registry.and_then(|registry| registry.0.problem_types.as_deref());
            return marked(rejection.render(types, audience.accepts_json()));
        };
        let retry_after = rejection.retry_after_seconds();
        let mut response = match audience.request() {
            Some(request) => render(rejection, request),
            None => render(rejection, &RejectedRequest::default()),
        };
        if let Some(seconds) = retry_after {
            response.headers_mut().entry(header::RETRY_AFTER).or_insert(seconds);
        }
        marked(response)
    }

    /// Returns the data of a request that is needed if the request is rejected.
    pub(crate) fn audience(
        registry: Option<&Self>,
        headers: &HeaderMap,
        head: impl FnOnce() -> RejectedRequest,
    ) -> Audience {
        match registry {
            Some(registry) if registry.0.render.is_some() => {
                Audience::with_head(head(), registry.0.problem_types.clone())
            }
            _ => Audience::of(headers),
        }
    }

    #[cfg(any(feature = "utoipa", feature = "aide"))]
    pub(crate) fn renders_rejections(&self) -> bool {
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

    pub(crate) fn running_limit(&self) -> &RunningLimit {
        &self.0.running_limit
    }

    pub(crate) fn renewer(&self) -> &Arc<LeaseRenewer> {
        &self.0.renewer
    }

    pub(crate) fn ended_claims(&self) -> &KeyedNotify {
        &self.0.ended_claims
    }

    pub(crate) fn watches(&self) -> &Watches {
        &self.0.watches
    }

    pub(crate) fn running(&self) -> &TaskTracker {
        &self.0.running
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

/// Returns the default scopes that several handlers have. One of these handlers could replay the other's responses.
fn shared_default_scopes() -> &'static HashSet<&'static str> {
    static SHARED: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
        let mut seen = HashSet::new();
        written_policies()
            .filter(|policy| policy.settings().has_default_scope)
            .map(Policy::scope)
            .filter(|scope| !seen.insert(*scope))
            .collect()
    });
    &SHARED
}
