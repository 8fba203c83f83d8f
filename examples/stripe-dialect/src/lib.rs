//! A payments API that Stripe's own SDKs take for Stripe's: `/v1/payment_intents`, form-encoded, with Stripe's objects,
//! errors and idempotency.
//!
//! ```console
//! cargo run -p stripe-dialect
//! ```
//!
//! and, beside it, with each SDK:
//!
//! ```console
//! npm --prefix examples/stripe-dialect/sdks/node run pay
//! examples/stripe-dialect/sdks/python/pay.sh
//! ```
//!
//! Each creates a payment intent, sends the same request once more with the same key, as a client does that lost the
//! answer, and gets the same payment intent back, with `idempotent-replayed: true`. What makes an API speak this dialect is
//! in [`registry`] and at the head of the handler:
//!
//! - rejections are rendered by [`rejection::stripe`]: stripe-node takes any body without the member `error` for a success;
//! - 402 is recorded beside 200, since a declined card is an outcome as well, while a request with a wrong parameter never
//!   claims its key: its extractor answers;
//! - `caller` is the account of the secret key: each account has keys of its own, also after it has changed its secret.

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

/// What the handlers work with.
#[derive(Clone, FromRef)]
pub struct App {
    /// Who may ask.
    pub accounts: Accounts,
    /// What was paid.
    pub books: Books,
    /// Who moves the money.
    pub network: Arc<dyn CardNetwork>,
}

/// The records in `store`, and rejections that Stripe's SDKs understand.
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
