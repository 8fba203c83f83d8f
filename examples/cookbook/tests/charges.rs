//! Recipe 12 of docs/cookbook.md.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use axum::{Router, routing::post};
use idempotent_runtime::testing::{self, Fault, TestRegistry, assert_not_replayed, assert_replayed};
use idempotent_runtime::{RecordKey, idempotent};
use tower::ServiceExt;

#[idempotent(scope = "charges", cache = [201])]
async fn create_charge(order: String) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charged for {order}"))
}

async fn charge(registry: &TestRegistry, key: &str) -> Response {
    let app = Router::new().route("/charges", post(create_charge)).layer(registry.layer());
    let request = Request::post("/charges").header("idempotency-key", key).body(Body::from("tea"));
    app.oneshot(request.expect("a request")).await.expect("a router answers")
}

#[tokio::test]
async fn the_body_alone() {
    let response = create_charge("tea".to_owned().into()).await;
    assert_eq!(response.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn a_retry_does_not_charge_again() {
    let registry = testing::registry();
    assert_not_replayed(charge(&registry, "k").await.headers());
    assert_replayed(charge(&registry, "k").await.headers());
    assert_eq!((registry.executions("charges"), registry.replays("charges")), (1, 1));
}

#[tokio::test]
async fn a_double_click_is_told_to_come_back() {
    let registry = testing::registry();
    let elsewhere = registry.seed_in_flight(RecordKey::new("charges", None, "k")).await;
    assert_eq!(charge(&registry, "k").await.status(), StatusCode::CONFLICT);
    elsewhere.complete((StatusCode::CREATED, "charged over there")).await.expect("it held the claim");
    assert_replayed(charge(&registry, "k").await.headers());
    assert_eq!(registry.executions("charges"), 0);
}

#[tokio::test]
async fn no_card_is_charged_without_a_store() {
    let registry = testing::registry();
    registry.store().on_claim(Fault::Unreachable);
    assert_eq!(charge(&registry, "k").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(registry.executions("charges"), 0);
}
