//! A payments API for Stripe's own SDKs: `/v1/payment_intents`, form-encoded, with Stripe's objects, errors and
//! idempotency.
//!
//! ```console
//! cargo run -p stripe-dialect
//! ```
//!
//! and, at the same time, with each SDK:
//!
//! ```console
//! npm --prefix examples/stripe-dialect/sdks/node run pay
//! examples/stripe-dialect/sdks/python/pay.sh
//! ```
//!
//! Each creates a payment intent, sends the same request again with the same key, as a client does that lost the
//! answer, and gets the same payment intent back, with `idempotent-replayed: true`. The compatibility with Stripe comes
//! from [`registry`] and from the attribute of the handler:
//!
//! - rejections are rendered by [`rejection::stripe`], because stripe-node treats any body without the member `error`
//!   as a success;
//! - 402 is recorded like 200, since a declined card is an outcome too. A request with a wrong parameter never claims
//!   its key, because its extractor rejects it;
//! - `caller` is the account of the secret key: each account has its own keys, even after its secret key was changed.

mod accounts;
mod books;
mod error;
mod headers;
mod network;
mod parameters;
mod payment_intents;

use std::sync::Arc;

use axum::extract::FromRef;
use axum::extract::Request;
use axum::routing::{get, post};
use axum::{Router, middleware};
use idempotent_runtime::store::StoreAdmin;
use idempotent_runtime::{Registry, rejection};

pub use self::accounts::Accounts;
pub use self::books::Books;
use self::error::ApiError;
pub use self::network::{Authorisation, CardNetwork, Charge, TestCards};

/// The state that the handlers share.
#[derive(Clone, FromRef)]
pub struct App {
    /// The accounts that may send requests.
    pub accounts: Accounts,
    /// The payment intents.
    pub books: Books,
    /// The company that moves the money.
    pub network: Arc<dyn CardNetwork>,
}

/// A registry with `store`, whose rejections Stripe's SDKs understand.
pub fn registry(store: impl StoreAdmin) -> Registry {
    Registry::builder(store).render_rejections(rejection::stripe).build()
}

/// The API, guarded by `registry`.
pub fn router(app: App, registry: &Registry) -> Router {
    Router::new()
        .route("/v1/payment_intents", post(payment_intents::create))
        .route("/v1/payment_intents/{id}", get(payment_intents::retrieve))
        .fallback(unknown_url)
        .method_not_allowed_fallback(unknown_url)
        .layer(registry.layer())
        .layer(middleware::from_fn(headers::name_the_request))
        .with_state(app)
}

async fn unknown_url(request: Request) -> ApiError {
    ApiError::UnknownUrl { method: request.method().clone(), path: request.uri().path().to_owned() }
}
