//! The entries of the stores, for operators: one page of HTML, and JSON.
//!
//! The inspector shows the annotated handlers and their policies, the number of keys in each state, the keys in flight,
//! the keys with an expired lease, and the keys whose outcome is unknown. It can look up single keys. The inspector
//! never shows a body, and shows complete keys only on request.
//!
//! # Behind your own authentication
//!
//! The inspector has no authentication of its own. It answers only requests whose extensions contain an [`Operator`],
//! which your authentication adds. Every other request gets 403, wherever the router is mounted. Nest it behind the
//! authentication of your operators:
//!
//! ```
//! use axum::extract::Request;
//! use axum::http::StatusCode;
//! use axum::middleware::{Next, from_fn};
//! use axum::response::Response;
//! use axum::{Router, routing::post};
//! use idempotent_runtime::inspector::{self, Operator};
//! use idempotent_runtime::{Registry, idempotent, store::MemoryStore};
//!
//! #[idempotent(scope = "charges")]
//! async fn create_charge() -> StatusCode {
//!     StatusCode::CREATED
//! }
//!
//! /// Your authentication. It names the operator, also for the audit events.
//! async fn operators_only(mut request: Request, next: Next) -> Result<Response, StatusCode> {
//!     let authorization = request.headers().get("authorization").ok_or(StatusCode::UNAUTHORIZED)?;
//!     if authorization != "Bearer of-alice-the-operator" {
//!         return Err(StatusCode::FORBIDDEN);
//!     }
//!     request.extensions_mut().insert(Operator::new("alice"));
//!     Ok(next.run(request).await)
//! }
//!
//! let registry = Registry::new(MemoryStore::new());
//! let inspector = inspector::router(&registry).layer(from_fn(operators_only));
//! let app: Router = Router::new()
//!     .route("/charges", post(create_charge))
//!     .layer(registry.layer())
//!     .nest("/ops/idempotency", inspector);
//! ```
//!
//! [`router`] is read-only. `Inspector::new(&registry).allow_purge().router()` can also purge, and with
//! `allow_resolve()` it can also resolve requests whose outcome is unknown. Both constructors take the registry or a
//! reference to it.
//!
//! # JSON
//!
//! All addresses are relative to the path of the router. `store` names a store of the registry; without `store`, the
//! default store is used. `limit` is the number of entries that are read, by default 10,000. `reveal=keys` shows
//! complete keys. A member without a value is `null`. New members may be added. Characters that a terminal does not
//! show are escaped, as JSON allows, so a program reads the original value.
//!
//! | request | parameters | answer |
//! |---|---|---|
//! | `GET /api/handlers` | | `handlers`: the policy of each handler |
//! | `GET /api/summary` | `store`, `limit`, `scope` | `store`, `stores`, `scanned`, `complete`, `all_claims`, `counts` by state, `scopes` with the counts of each, `purge_allowed`, `resolve_allowed`, `keys_are_digests` |
//! | `GET /api/entries` | the same, `state`, `reveal` | `store`, `scanned`, `complete`, `all_claims`, `counts`, `entries`: at most 1,000 of each state as [`EntryReport`](crate::operate::EntryReport), claims the oldest first, records the newest, with at most 255 characters of each text: see `shortened` |
//! | `GET /api/entries/{id}` | `store`, `limit`, `reveal` | `store`, `entry`, `consequence` of a purge, and what a purge or a resolution must `confirm` |
//! | `POST /api/look-up` | a form: `scope`, `caller`, `key`, `store`, `reveal` | the same |
//! | `DELETE /api/entries/{id}` | `store`, `limit`, `confirm` | `store`, `purged`, and the `entry` that it was |
//! | `POST /api/purge` | a form: `scope`, `caller`, `key`, `store`, `confirm` | the same |
//! | `POST /api/resolve` | a form: `scope`, `caller`, `key` or `id`, `store`, `confirm`, `reason`, `outcome`: `not_executed`, or `executed` with `status`, `headers`, `body`, `ttl` | `store`, `resolved`, and the `entry` that it was |
//!
//! `complete` is false if a store has more than `limit` entries, or takes longer than ten seconds. Then every count is
//! a lower bound. If `all_claims` is true, the counts of `in_flight`, `past_lease` and `outcome_unknown` are still
//! exact: a store with an index of claims finds them without reading the records. Every error is
//! `application/problem+json` with a stable `code`. Keys and callers are sent in bodies, because logs contain
//! addresses. Instead of `scope`, `caller` and `key`, a form can send `record_key`, the text of
//! [`RecordKey::as_str`](crate::RecordKey::as_str).
//!
//! # What it does not show
//!
//! A running handler with a `Tx` has no entry in its store. A claim with an expired lease is shown as `outcome_unknown`
//! if a handler or a layer of its scope in *this program* has `after_crash = "reject"`. The list of handlers does not
//! contain layers.
//!
//! # Resolving
//!
//! An operator who has found out what happened to a request can resolve its claim, if the lease of the claim has
//! expired. With `outcome=executed`, retries get the `status`, the `headers` (`name: value`, one on each line) and the
//! text of `body`. Retries get this response for `ttl`, by default the longest `ttl` of the handlers of the scope. With
//! `outcome=not_executed`, the next retry runs the handler. See [`Registry::resolve`].
//!
//! A resolution must repeat the `confirm` of the entry that the operator has read, and give a `reason`. The store
//! itself compares the claim: if two operators resolve the claim at the same time, only one of them succeeds, and a
//! claim that was renewed meanwhile is not changed (409 `changed` and `still_running`). A page of another site cannot
//! send a resolution. Every requested resolution is an event of the target [`AUDIT_TARGET`].
//!
//! # Purging
//!
//! A purge must repeat the `confirm` of the entry that the operator has read, so no other entry is purged. A change
//! between the last check and the purge, which is one round trip to the store, is not detected. A page of another site
//! cannot send a purge. Every purge request, whether the entry is purged or not, and every display of complete keys is
//! an event of the target [`AUDIT_TARGET`].

pub(crate) mod api;
pub(crate) mod audit;
pub(crate) mod handlers;
pub(crate) mod page;
pub(crate) mod problem;
pub(crate) mod query;
pub(crate) mod resolving;
pub(crate) mod service;

use std::borrow::Borrow;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderName, HeaderValue, StatusCode, header};

pub use crate::inspector::audit::Operator;
use crate::inspector::problem::Problem;
pub use crate::operate::audit::AUDIT_TARGET;
use crate::registry::Registry;

/// The largest form, in bytes. It can contain a response of the largest size that a handler records by default. A form
/// may encode each byte of the response as three bytes.
const LARGEST_FORM: usize = 16 * 1024 * 1024;

/// The name of the default store, for places that need a name.
const DEFAULT_STORE: &str = "default";

/// Returns the router of a read-only inspector of this registry. The router answers only requests with an [`Operator`]:
/// see [the module](self).
pub fn router(registry: impl Borrow<Registry>) -> Router {
    Inspector::new(registry).router()
}

/// Collects the options of an inspector.
///
/// # Examples
///
/// ```
/// use axum::Router;
/// use idempotent_runtime::inspector::Inspector;
/// use idempotent_runtime::{Registry, store::MemoryStore};
///
/// let registry = Registry::new(MemoryStore::new());
/// let inspector = Inspector::new(&registry).allow_purge();
/// let operators: Router = Router::new().nest("/idempotency", inspector.into()); // .layer(your authentication)
/// ```
#[derive(Clone, Debug)]
#[must_use = "an inspector does nothing until `router`"]
pub struct Inspector {
    registry: Registry,
    allows_purge: bool,
    allows_resolve: bool,
    trusts_everybody: bool,
}

impl Inspector {
    /// Creates a read-only inspector of this registry.
    pub fn new(registry: impl Borrow<Registry>) -> Self {
        Self {
            registry: registry.borrow().clone(),
            allows_purge: false,
            allows_resolve: false,
            trusts_everybody: false,
        }
    }

    /// Lets operators purge single keys.
    ///
    /// **After a purge, a retry runs the handler again.**
    pub fn allow_purge(mut self) -> Self {
        self.allows_purge = true;
        self
    }

    /// Lets operators resolve requests whose outcome is unknown: see [`Registry::resolve`].
    ///
    /// **Retries then get the response that the operator wrote**, or run the handler.
    pub fn allow_resolve(mut self) -> Self {
        self.allows_resolve = true;
        self
    }

    /// Answers requests without an [`Operator`] too.
    ///
    /// **Every client that reaches the router sees all entries**, can purge them with
    /// [`allow_purge`](Self::allow_purge), and can resolve them with [`allow_resolve`](Self::allow_resolve). Use this
    /// option only for routers that only operators reach, such as those of a separate loopback listener.
    pub fn trust_everybody(mut self) -> Self {
        self.trusts_everybody = true;
        self
    }

    /// Returns the router. Nest it behind your own authentication, which adds the [`Operator`].
    pub fn router(self) -> Router {
        let inspector = Arc::new(self);
        Router::new()
            .route("/", get(page::show).post(page::act))
            .route("/api/handlers", get(api::handlers))
            .route("/api/summary", get(api::summary))
            .route("/api/entries", get(api::entries))
            .route("/api/entries/{id}", get(api::entry).delete(api::purge_by_id))
            .route("/api/look-up", post(api::look_up))
            .route("/api/purge", post(api::purge))
            .route("/api/resolve", post(api::resolve))
            .with_state(Arc::clone(&inspector))
            .layer(DefaultBodyLimit::max(LARGEST_FORM))
            .layer(from_fn_with_state(inspector, guard))
    }
}

impl From<Inspector> for Router {
    fn from(inspector: Inspector) -> Self {
        inspector.router()
    }
}

/// Rejects requests without an operator. Keeps all answers out of caches, frames and other sites.
async fn guard(State(inspector): State<Arc<Inspector>>, request: Request, next: Next) -> Response {
    let mut response = if inspector.trusts_everybody || request.extensions().get::<Operator>().is_some() {
        next.run(request).await
    } else {
        let detail = "the inspector answers only the application's operators: put your own authentication around it, and let \
                      that add `Operator::new(name)` to the request's extensions, as in `inspector::router(registry).layer(from_fn(operators_only))`";
        Problem::new(StatusCode::FORBIDDEN, "no_operator", detail).into_response()
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // With `no-referrer` a browser would send `Origin: null` with the forms of the page.
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert_with(page::content_security_policy);
    response
}
