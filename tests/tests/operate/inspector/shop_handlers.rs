//! Handlers whose requests leave every state of an entry. The tests of the inspector and of the CLI share this file.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::Runs;
use tower_http::catch_panic::CatchPanicLayer;

/// A text in the bodies of responses. The inspector and the CLI must never show it.
pub(crate) const BODY: &str = "the-secret-of-the-response";

fn caller(headers: &HeaderMap) -> String {
    headers.get("x-caller").map_or_else(String::new, |value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

#[idempotent(scope = "charges", caller = caller(&headers), fingerprint = none)]
async fn charge(headers: HeaderMap) -> (StatusCode, &'static str) {
    (StatusCode::CREATED, BODY)
}

#[idempotent(scope = "exports", max_body = "8B")]
async fn export() -> &'static str {
    BODY
}

#[idempotent(scope = "payouts", ttl = "7d", cache = [201, 409], in_flight = wait("5s"))]
async fn pay_out(State(runs): State<Runs>) -> StatusCode {
    runs.run().await;
    StatusCode::CREATED
}

#[idempotent(scope = "transfers", after_crash = "reject", required)]
async fn transfer() -> StatusCode {
    panic!("the handler was cut off")
}

/// The routes of all handlers, with the registry's stores. `runs` holds the handlers in `payouts`.
pub(crate) fn routes(registry: &Registry, runs: &Runs) -> Router {
    Router::new()
        .route("/charges", post(charge))
        .route("/exports", post(export))
        .route("/payouts", post(pay_out))
        .route("/transfers", post(transfer))
        .with_state(runs.clone())
        .layer(registry.layer())
        .layer(CatchPanicLayer::new())
}
