//! What a document of aide says about annotated handlers.

use aide::axum::ApiRouter;
use aide::axum::routing::{post, post_with};
use aide::openapi::OpenApi;
use aide::transform::TransformOpenApi;
use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use idempotent_runtime::{Idempotency, Tx, idempotent, openapi};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::Sqlite;

#[derive(Deserialize, JsonSchema)]
struct Order {
    amount: u64,
}

#[derive(Deserialize, JsonSchema)]
struct Shop {
    number: u64,
}

#[derive(Serialize, JsonSchema)]
struct Charge {
    id: u64,
}

#[derive(Serialize, JsonSchema)]
struct ApiError {
    error: String,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (StatusCode::CONFLICT, Json(self)).into_response()
    }
}

impl aide::OperationOutput for ApiError {
    type Inner = Self;

    fn operation_response(
        context: &mut aide::generate::GenContext,
        operation: &mut aide::openapi::Operation,
    ) -> Option<aide::openapi::Response> {
        Json::<Self>::operation_response(context, operation)
    }

    fn inferred_responses(
        context: &mut aide::generate::GenContext,
        operation: &mut aide::openapi::Operation,
    ) -> Vec<(Option<u16>, aide::openapi::Response)> {
        Self::operation_response(context, operation).map(|response| (Some(409), response)).into_iter().collect()
    }
}

/// A handler in its own module, with these attributes.
macro_rules! create_charge {
    ($module:ident, $(#$attribute:tt)*) => {
        mod $module {
            use super::*;

            $(#$attribute)*
            pub(super) async fn create_charge(
                State(fee): State<u64>,
                Query(shop): Query<Shop>,
                Json(order): Json<Order>,
            ) -> Result<Json<Charge>, ApiError> {
                if order.amount == 0 {
                    Err(ApiError { error: "0".to_owned() })
                } else {
                    Ok(Json(Charge { id: shop.number + fee }))
                }
            }
        }
    };
}

create_charge!(bare,);
create_charge!(guarded, #[idempotent(scope = "charges", required, header = "x-request-id")]);

/// A handler with this library's extractors, and a return type without a name.
#[idempotent(scope = "aide-refunds", ttl = "90s", cache = [202, 409])]
async fn refund(idempotency: Idempotency, _: Tx<Sqlite>, Json(order): Json<Order>) -> impl IntoResponse {
    let _ = (idempotency.attempt(), order.amount);
    StatusCode::ACCEPTED
}

#[idempotent]
async fn empty() {}

fn document(router: ApiRouter<u64>, transform: fn(TransformOpenApi<'_>) -> TransformOpenApi<'_>) -> Value {
    let mut document = OpenApi::default();
    let _ = router.finish_api_with(&mut document, transform);
    serde_json::to_value(document).expect("JSON")
}

#[test]
fn rejections_are_one_component_that_lists_every_code() {
    let router =
        || ApiRouter::new().api_route("/charges", post(guarded::create_charge)).api_route("/empty", post(empty));
    let document = document(router(), |api| api);
    let component = &document["components"]["schemas"]["IdempotencyProblem"];
    let every = component["properties"]["code"]["enum"].as_array().expect("codes");
    for path in ["/charges", "/empty"] {
        for status in ["409", "422", "500", "503"] {
            let codes = codes(&document["paths"][path]["post"], status);
            let codes = codes.as_array().expect("codes");
            assert!(!codes.is_empty() && codes.iter().all(|code| every.contains(code)), "{path} {status}: {codes:?}");
        }
    }
}

#[test]
fn rejections_are_in_each_response_without_components() {
    aide::generate::extract_schemas(false);
    let document = document(ApiRouter::new().api_route("/empty", post(empty)), |api| api);
    aide::generate::extract_schemas(true);
    let content = &document["paths"]["/empty"]["post"]["responses"]["422"]["content"]["application/problem+json"];
    assert_eq!(content["schema"]["properties"]["code"]["enum"], json!(["key_reused", "other_credentials"]));
    assert!(!document.to_string().contains("$ref"), "{document}");
}

fn key_parameter(operation: &Value) -> &Value {
    let parameters = operation["parameters"].as_array().expect("parameters");
    parameters.iter().find(|parameter| parameter["in"] == "header").expect("a header")
}

fn codes(operation: &Value, status: &str) -> Value {
    let content = &operation["responses"][status]["content"]["application/problem+json"];
    let schema = &content["schema"]["allOf"];
    assert_eq!(schema[0], json!({ "$ref": "#/components/schemas/IdempotencyProblem" }), "{status}");
    schema[1]["properties"]["code"]["enum"].clone()
}

#[test]
fn a_handler_keeps_all_that_aide_sees_without_us() {
    let without = document(ApiRouter::new().api_route("/charges", post(bare::create_charge)), |api| api);
    let with = document(ApiRouter::new().api_route("/charges", post(guarded::create_charge)), |api| api);
    let schemas = |document: &Value| document["components"]["schemas"].as_object().expect("components").clone();
    let mut of_both = schemas(&with);
    assert!(of_both.remove("IdempotencyProblem").is_some(), "the only one that is added");
    assert_eq!(of_both, schemas(&without));
    let operation = |document: &Value| document["paths"]["/charges"]["post"].clone();
    let (with, without) = (operation(&with), operation(&without));
    assert_eq!(with["requestBody"], without["requestBody"]);
    let paging = without["parameters"].as_array().expect("parameters");
    assert!(with["parameters"].as_array().expect("parameters").starts_with(paging));
    let (with, without) = (&with["responses"], &without["responses"]);
    assert!(!without["200"]["content"].is_null() && !without["409"]["content"].is_null(), "{without:#}");
    for status in ["200", "409"] {
        assert_eq!(with[status]["description"], without[status]["description"]);
        let json = "application/json";
        assert_eq!(with[status]["content"][json], without[status]["content"][json], "{status}");
    }
}

#[test]
fn a_handler_documents_header_rejections_replay_and_policy() {
    let document = document(ApiRouter::new().api_route("/charges", post(guarded::create_charge)), |api| api);
    let operation = &document["paths"]["/charges"]["post"];
    let parameter = key_parameter(operation);
    assert_eq!((&parameter["name"], &parameter["required"]), (&json!("x-request-id"), &json!(true)));
    assert_eq!(parameter["schema"]["maxLength"], 512);
    assert_eq!(codes(operation, "400"), json!(["missing_key", "invalid_key"]));
    assert_eq!(codes(operation, "409"), json!(["in_flight", "claim_lost", "response_not_recorded"]));
    assert_eq!(codes(operation, "422"), json!(["key_reused", "other_credentials"]));
    assert_eq!(codes(operation, "500"), json!(["step_failed"]));
    assert_eq!(codes(operation, "503"), json!(["store_unavailable", "too_many_in_flight"]));
    let responses = &operation["responses"];
    for status in ["409", "503"] {
        assert!(responses[status]["headers"]["Retry-After"].is_object(), "{status}");
    }
    assert!(responses["200"]["headers"]["idempotent-replayed"].is_object());
    assert_eq!(responses["409"]["headers"]["idempotent-replayed"], Value::Null, "it is not recorded");
    let policy = &operation["x-idempotency"];
    assert_eq!((&policy["scope"], &policy["statuses"]), (&json!("charges"), &json!(["2XX", 303])));
}

#[test]
fn transform_is_kept_and_its_recorded_responses_are_marked() {
    let router = || {
        ApiRouter::new()
            .api_route(
                "/refunds",
                post_with(refund, |op| op.response::<202, Json<Charge>>().response::<409, Json<ApiError>>()),
            )
            .api_route("/empty", post(empty))
    };
    let unfinished = document(router(), |api| api);
    let finished = document(router(), openapi::complete);
    let again = document(router(), |api| openapi::complete(openapi::complete(api)));
    assert_eq!(finished, again, "it changes nothing that is complete");
    let responses = |document: &Value| document["paths"]["/refunds"]["post"]["responses"].clone();
    assert_eq!(responses(&unfinished)["202"]["headers"], Value::Null);
    let responses = responses(&finished);
    for status in ["202", "409"] {
        assert!(responses[status]["headers"]["idempotent-replayed"].is_object(), "{status}");
        assert!(responses[status]["content"]["application/json"].is_object(), "{status}");
    }
    assert_eq!(finished["paths"]["/refunds"]["post"]["x-idempotency"]["ttl"], "1m30s");
    let scope = &finished["paths"]["/empty"]["post"]["x-idempotency"]["scope"];
    assert_eq!(scope, concat!(module_path!(), "::empty"));
}

#[tokio::test]
async fn documented_routes_serve_their_handlers() {
    use tower::ServiceExt;

    let mut document = OpenApi::default();
    let registry = idempotent_runtime::Registry::new(idempotent_runtime::store::MemoryStore::new());
    let router = ApiRouter::new().api_route("/charges", post(guarded::create_charge)).with_state(1);
    let app: axum::Router = router.finish_api(&mut document).layer(registry.layer());
    for replayed in [false, true] {
        let request = axum::http::Request::post("/charges?number=4").header("x-request-id", "key");
        let request =
            request.header("content-type", "application/json").body(axum::body::Body::from(r#"{"amount": 3}"#));
        let response = app.clone().oneshot(request.expect("a request")).await.expect("an answer");
        assert_eq!(
            (response.status(), response.headers().contains_key("idempotent-replayed")),
            (StatusCode::OK, replayed)
        );
    }
}
