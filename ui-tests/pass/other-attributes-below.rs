//! Three other attributes below ours see the handler as it was written.
//!
//! The handlers are those of `other-attributes-above.rs`: each case is a separate program.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use idempotent_runtime::idempotent;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

#[derive(Clone)]
struct App;

#[derive(serde::Deserialize, utoipa::ToSchema)]
struct Order {
    amount: u64,
}

#[derive(serde::Serialize, utoipa::ToSchema)]
struct Charge {
    id: u64,
}

/// Charges a card.
#[idempotent(scope = "charges", caller = order.amount)]
#[utoipa::path(post, path = "/charges", responses((status = 201, body = Charge)))]
#[tracing::instrument(skip(app, order), fields(amount = order.amount))]
#[axum::debug_handler(state = App)]
#[allow(clippy::unused_async)]
async fn create_charge(State(app): State<App>, Json(order): Json<Order>) -> (StatusCode, Json<Charge>) {
    let _ = app;
    (StatusCode::CREATED, Json(Charge { id: order.amount }))
}

#[derive(OpenApi)]
#[openapi(paths(create_charge))]
struct Api;

fn main() {
    let (_router, document) = OpenApiRouter::<App>::new().routes(routes!(create_charge)).split_for_parts();
    for document in [document, Api::openapi()] {
        let text = document.to_json().unwrap();
        assert!(text.contains("#/components/schemas/Order"), "the request's schema is kept: {text}");
        assert!(text.contains("#/components/schemas/Charge"), "{text}");
        assert!(text.contains("Charges a card."), "{text}");
    }
    let policies: Vec<_> = idempotent_runtime::policies().collect();
    assert_eq!(policies.len(), 1, "debug_handler emits it twice: {policies:?}");
}
