//! Tools for tests: registries that count, stores that fail on command, handlers that run unguarded, and the rules of
//! stores.
//!
//! | | |
//! |---|---|
//! | a direct call | the handler as a function, unguarded |
//! | [`registry`], [`TestRegistry`] | a registry for one test, which counts executions, replays and rejections by scope |
//! | [`assert_replayed`], [`assert_not_replayed`] | whether a response is a replay |
//! | [`FaultyStore`] | a wrapper of any store that fails or stalls on command |
//! | [`TestRegistry::seed_in_flight`] | a claim of another process |
//! | [`Registry::disabled`](crate::Registry::disabled) | handlers that run unguarded |
//! | [`conformance`] | the rules of every store |
//!
//! # A handler as a function
//!
//! An annotated handler takes `.into()` for its last argument. A direct call claims and records nothing: it tests only the
//! body of the handler.
//!
//! ```
//! use axum::Json;
//! use axum::extract::State;
//! use axum::http::StatusCode;
//! use idempotent_runtime::testing::idempotency;
//! use idempotent_runtime::{Idempotency, idempotent};
//!
//! #[idempotent(scope = "charges", cache = [201])]
//! async fn create_charge(
//!     State(limit): State<u64>,
//!     idempotency: Idempotency,
//!     Json(amount): Json<u64>,
//! ) -> (StatusCode, String) {
//!     let status = if amount > limit { StatusCode::PAYMENT_REQUIRED } else { StatusCode::CREATED };
//!     (status, format!("attempt {}", idempotency.attempt()))
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let declined = create_charge(State(100), Idempotency::default(), Json(101).into()).await;
//! assert_eq!(declined.status(), StatusCode::PAYMENT_REQUIRED);
//!
//! // As the second attempt of a key, after a crash.
//! let charged = create_charge(State(100), idempotency("8e03978e", 2), Json(99).into()).await;
//! assert_eq!(charged.status(), StatusCode::CREATED);
//! # });
//! ```
//!
//! # A router, its retries and its duplicates
//!
//! Each test has a registry of its own, so tests can run in parallel. Its store uses tokio's clock: under
//! `tokio::time::pause` a lease, a ttl or a store that hangs takes no real time.
//!
//! Do not wait for a database or a socket under a paused clock: tokio advances that clock whenever its tasks are idle, and
//! then the time limits of connection pools expire at once. Pause the clock in such a test only while `tokio::time::advance`
//! runs.
//!
//! ```
//! use std::time::Duration;
//!
//! use axum::body::Body;
//! use axum::http::{Request, StatusCode};
//! use axum::response::Response;
//! use axum::{Router, routing::post};
//! use idempotent_runtime::testing::{self, Fault, assert_not_replayed, assert_replayed};
//! use idempotent_runtime::{RecordKey, idempotent};
//! use tower::ServiceExt;
//!
//! #[idempotent(scope = "charges", ttl = "24h", cache = [201])]
//! async fn create_charge() -> (StatusCode, &'static str) {
//!     (StatusCode::CREATED, "charged")
//! }
//!
//! async fn charge(app: &Router, key: &str) -> Response {
//!     let request = Request::post("/charges").header("idempotency-key", key).body(Body::empty()).unwrap();
//!     app.clone().oneshot(request).await.unwrap()
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! let registry = testing::registry();
//! let app = Router::new().route("/charges", post(create_charge)).layer(registry.layer());
//!
//! assert_not_replayed(charge(&app, "a").await.headers());
//! assert_replayed(charge(&app, "a").await.headers());
//! tokio::time::advance(Duration::from_secs(25 * 60 * 60)).await;
//! assert_not_replayed(charge(&app, "a").await.headers());
//! assert_eq!((registry.executions("charges"), registry.replays("charges")), (2, 1));
//!
//! // Another process runs a request with this key.
//! let other = registry.seed_in_flight(RecordKey::new("charges", None, "b")).await;
//! assert_eq!(charge(&app, "b").await.status(), StatusCode::CONFLICT);
//! other.complete((StatusCode::CREATED, "charged over there")).await.unwrap();
//! assert_replayed(charge(&app, "b").await.headers());
//!
//! // The store is unreachable.
//! registry.store().on_claim(Fault::Hangs);
//! assert_eq!(charge(&app, "c").await.status(), StatusCode::SERVICE_UNAVAILABLE);
//! assert_eq!(registry.rejections("charges", "in_flight"), 1);
//! assert_eq!(registry.rejections("charges", "store_unavailable"), 1);
//! assert_eq!(registry.executions("charges"), 2);
//! # });
//! ```

pub(crate) mod assertions;
pub mod conformance;
pub(crate) mod counts;
#[doc(hidden)]
pub mod decoders;
pub(crate) mod fault;
pub(crate) mod faulty;
pub(crate) mod registry;
pub(crate) mod seeded;

use crate::request::idempotency::Idempotency;
pub use crate::testing::assertions::{assert_not_replayed, assert_replayed};
pub use crate::testing::fault::Fault;
pub use crate::testing::faulty::FaultyStore;
pub use crate::testing::registry::{TestRegistry, registry};
pub use crate::testing::seeded::SeededClaim;
#[doc(inline)]
pub use crate::transaction::transactions::TransactionPhase;

/// Returns the `Idempotency` of a handler that runs under this key, for a test that calls the handler. Its steps run
/// and record nothing.
///
/// The scope of its downstream keys is `test`.
///
/// # Panics
///
/// Panics if the key is malformed, or if `attempt` is 0.
#[track_caller]
pub fn idempotency(key: &str, attempt: u32) -> Idempotency {
    assert!(attempt > 0, "attempts are counted from 1");
    Idempotency::of_test(key, attempt)
}
