//! What a document of utoipa says about annotated handlers, in either order of the two attributes.

use axum::Json;
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use idempotent_runtime::openapi::ProblemComponent;
use idempotent_runtime::{Tx, idempotent};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, Modify as _, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

#[derive(Deserialize, ToSchema)]
struct Order {
    amount: u64,
    items: Vec<Item>,
}

#[derive(Deserialize, ToSchema)]
struct Item {
    name: String,
}

#[derive(Serialize, ToSchema)]
struct Charge {
    id: u64,
}

#[derive(Serialize, ToSchema)]
struct ApiError {
    error: String,
}

#[derive(Deserialize, IntoParams)]
struct Paging {
    page: u64,
}

type Answer = (StatusCode, Json<Charge>);

fn charge(order: &Order) -> Answer {
    let id = order.amount + order.items.iter().map(|item| item.name.len() as u64).sum::<u64>();
    (StatusCode::CREATED, Json(Charge { id }))
}

/// A handler in its own module, with these attributes above and below utoipa's.
macro_rules! create_charge {
    ($module:ident, above: [$(#$above:tt)*], below: [$(#$below:tt)*]) => {
        mod $module {
            use super::*;

            /// Charges a card.
            ///
            /// Once.
            $(#$above)*
            #[utoipa::path(post, path = "/charges/{shop}", params(Paging), tag = "money", responses(
                (status = 201, body = Charge), (status = 404, description = "no such shop"),
                (status = 409, body = ApiError),
            ))]
            $(#$below)*
            pub(super) async fn create_charge(
                Path(shop): Path<u64>,
                Query(paging): Query<Paging>,
                Json(order): Json<Order>,
            ) -> Answer {
                let _ = shop + paging.page;
                charge(&order)
            }
        }
    };
}

create_charge!(bare, above: [], below: []);
create_charge!(above, above: [#[idempotent(scope = "above", cache = [201, 402])]], below: []);
create_charge!(below, above: [], below: [#[idempotent(scope = "below", cache = [201, 402])]]);

/// The documents of `routes!` and of `#[openapi(paths(…))]`.
macro_rules! documents {
    ($($handler:tt)+) => {{
        #[derive(OpenApi)]
        #[openapi(paths($($handler)+))]
        struct Api;
        let routed = OpenApiRouter::<()>::new().routes(routes!($($handler)+)).into_openapi();
        [routed, Api::openapi()].map(|document| serde_json::to_value(document).expect("JSON"))
    }};
}

/// The document's only operation.
fn operation(document: &Value) -> &Value {
    let paths = document["paths"].as_object().expect("paths");
    let [item] = paths.values().collect::<Vec<_>>()[..] else { panic!("one path: {document}") };
    let [operation] = item.as_object().expect("a path item").values().collect::<Vec<_>>()[..] else {
        panic!("one operation: {document}")
    };
    operation
}

fn key_parameter(operation: &Value) -> Option<&Value> {
    let is_header = |parameter: &&Value| parameter["in"] == "header";
    operation["parameters"].as_array().and_then(|parameters| parameters.iter().find(is_header))
}

fn codes<'a>(operation: &'a Value, status: &str) -> Vec<&'a str> {
    let content = &operation["responses"][status]["content"]["application/problem+json"]["schema"];
    let codes = content["properties"]["code"]["enum"].as_array();
    codes.into_iter().flatten().map(|code| code.as_str().expect("a word")).collect()
}

/// Whether `with` contains all of `without`.
fn keeps(with: &Value, without: &Value) -> bool {
    match (with, without) {
        (Value::Object(with), Value::Object(without)) => {
            without.iter().all(|(name, value)| with.get(name).is_some_and(|with| keeps(with, value)))
        }
        (Value::Array(with), Value::Array(without)) => with.starts_with(without),
        _ => with == without,
    }
}

#[test]
fn either_order_keeps_all_that_utoipa_documents() {
    let without = documents!(bare::create_charge);
    for (with, scope) in [(documents!(above::create_charge), "above"), (documents!(below::create_charge), "below")] {
        for (with, without) in with.iter().zip(&without) {
            assert!(keeps(with, without), "{scope}: {with:#}");
            assert_eq!(with["components"], without["components"], "{scope}");
            let (with, without) = (operation(with), operation(without));
            for part in ["requestBody", "summary", "description", "operationId"] {
                assert_eq!(with[part], without[part], "{scope}");
            }
            assert_eq!(with["responses"]["201"]["description"], "Created.", "OpenAPI requires one");
            assert_eq!(with["responses"]["201"]["content"], without["responses"]["201"]["content"], "{scope}");
            assert_eq!(with["responses"]["404"], without["responses"]["404"], "{scope}: it is not recorded");
            assert_eq!(with["x-idempotency"]["scope"], scope);
        }
    }
}

/// Transfers money.
#[utoipa::path(post, path = "/transfers", responses((status = 201)))]
#[idempotent(scope = "transfers", isolation = "serializable")]
async fn transfer(_tx: Tx<sqlx::Postgres>) -> StatusCode {
    StatusCode::CREATED
}

#[test]
fn handler_with_a_tx_documents_that_it_may_conflict() {
    for document in documents!(transfer) {
        assert_eq!(
            codes(operation(&document), "503"),
            ["store_unavailable", "transaction_conflict", "too_many_in_flight"]
        );
        assert_eq!(codes(operation(&document), "500"), ["transaction_failed"]);
    }
}

/// Cancels what its fingerprint names.
#[utoipa::path(post, path = "/cancellations", responses((status = 200)))]
#[idempotent(scope = "cancellations", fingerprint = only(order))]
async fn cancel(Path(order): Path<u64>) -> String {
    order.to_string()
}

#[test]
fn fingerprint_of_an_expression_documents_that_it_may_fail() {
    for document in documents!(cancel) {
        assert_eq!(codes(operation(&document), "500"), ["step_failed", "fingerprint_failed"]);
    }
}

#[test]
fn either_order_documents_header_rejections_replay_and_policy() {
    for document in [documents!(above::create_charge), documents!(below::create_charge)].as_flattened() {
        let operation = operation(document);
        let parameter = key_parameter(operation).expect("a header");
        assert_eq!(parameter["name"], "idempotency-key");
        assert_eq!(parameter["required"], false);
        assert_eq!(parameter["schema"]["maxLength"], 512, "255, each escaped, and two quotes");
        assert_eq!(codes(operation, "400"), ["invalid_key"]);
        assert_eq!(codes(operation, "409"), ["in_flight", "claim_lost", "response_not_recorded"]);
        assert_eq!(codes(operation, "422"), ["key_reused", "other_credentials"]);
        assert_eq!(codes(operation, "503"), ["store_unavailable", "too_many_in_flight"]);
        let responses = &operation["responses"];
        for (status, sends_it) in [("400", false), ("409", true), ("422", false), ("503", true)] {
            assert_eq!(responses[status]["headers"]["Retry-After"].is_object(), sends_it, "{status}");
        }
        for (status, is_recorded) in [("201", true), ("404", false), ("409", false)] {
            let header = &responses[status]["headers"]["idempotent-replayed"];
            assert_eq!(header.is_object(), is_recorded, "{status}");
        }
        let policy = &operation["x-idempotency"];
        assert_eq!(policy["ttl"], "24h");
        assert_eq!(policy["ttl_seconds"], 86400);
        assert_eq!(policy["statuses"], json!([201, 402]));
    }
}

#[test]
fn a_409_of_the_users_own_keeps_its_words_and_its_schema() {
    for document in [documents!(above::create_charge), documents!(below::create_charge)].as_flattened() {
        let conflict = &operation(document)["responses"]["409"];
        assert_eq!(conflict["description"], "Conflict.", "utoipa alone leaves it out");
        assert_eq!(conflict["content"]["application/json"]["schema"]["$ref"], "#/components/schemas/ApiError");
    }
}

#[utoipa::path(post, path = "/long")]
#[idempotent(scope = "openapi-long", min_key_length = 16)]
async fn long() {}

#[utoipa::path(post, path = "/uuid")]
#[idempotent(scope = "openapi-uuid", key_format = "uuid")]
async fn uuid() {}

#[test]
fn rules_of_the_key_are_in_its_schema() {
    for document in documents!(long) {
        let schema = &key_parameter(operation(&document)).expect("a header")["schema"];
        assert_eq!((&schema["minLength"], &schema["maxLength"]), (&json!(16), &json!(512)));
        let pattern = schema["pattern"].as_str().expect("a pattern");
        assert!(pattern.contains("{16,255}") && pattern.contains("{15,254}"), "bare, and in quotes: {pattern}");
    }
    for document in documents!(uuid) {
        let schema = &key_parameter(operation(&document)).expect("a header")["schema"];
        assert_eq!(schema["anyOf"][0]["format"], "uuid");
        let quoted = schema["anyOf"][1]["pattern"].as_str().expect("a pattern");
        assert!(quoted.starts_with("^\"") && quoted.ends_with("\"$"), "{quoted}");
    }
}

/// Requires its key, in a header of another name, and runs at most once.
#[utoipa::path(put, path = "/refunds", responses((status = "2XX"), (status = "4XX", body = ApiError)))]
#[idempotent(scope = "refunds", required, header = "X-Request-Id", after_crash = "reject", ttl = "90s",
    in_flight = wait("5s"), oversize = "rerun", cache = [200..=299])]
async fn refund() -> StatusCode {
    StatusCode::OK
}

#[test]
fn a_required_key_in_another_header_is_documented_as_such() {
    for document in documents!(refund) {
        let operation = operation(&document);
        let parameter = key_parameter(operation).expect("a header");
        assert_eq!((&parameter["name"], &parameter["required"]), (&json!("x-request-id"), &json!(true)));
        assert_eq!(codes(operation, "400"), ["missing_key", "invalid_key"]);
        assert_eq!(codes(operation, "409"), ["in_flight", "not_recorded", "claim_lost", "outcome_unknown"]);
        let policy = &operation["x-idempotency"];
        assert_eq!((&policy["statuses"], &policy["ttl"]), (&json!(["2XX"]), &json!("1m30s")));
        assert_eq!((&policy["in_flight"], &policy["after_crash"]), (&json!("wait 5s"), &json!("reject")));
        assert!(operation["responses"]["2XX"]["headers"]["idempotent-replayed"].is_object());
        assert_eq!(codes(operation, "500"), ["step_failed"]);
    }
}

#[test]
fn range_of_statuses_documented_by_the_user_covers_rejections() {
    let [document, _] = documents!(refund);
    for status in ["400", "409", "422"] {
        let content = &operation(&document)["responses"][status]["content"];
        assert_eq!(content["application/json"]["schema"]["$ref"], "#/components/schemas/ApiError", "{status}");
    }
    assert_eq!(operation(&document)["responses"]["503"]["content"]["application/json"], Value::Null);
}

#[test]
fn rejections_are_one_component_of_a_document_with_the_modifier() {
    #[derive(OpenApi)]
    #[openapi(paths(above::create_charge, below::create_charge, own_words), modifiers(&ProblemComponent))]
    struct Api;
    let mut routed = OpenApiRouter::<()>::new().routes(routes!(above::create_charge)).into_openapi();
    ProblemComponent.modify(&mut routed);
    let whole = documents!(above::create_charge);
    for document in [Api::openapi(), routed].map(|document| serde_json::to_value(document).expect("JSON")) {
        let component = &document["components"]["schemas"]["IdempotencyProblem"];
        let every = component["properties"]["code"]["enum"].as_array().expect("codes");
        let responses = &document["paths"]["/charges/{shop}"]["post"]["responses"];
        for status in ["400", "409", "422", "500", "503"] {
            let schema = &responses[status]["content"]["application/problem+json"]["schema"]["allOf"];
            assert_eq!(schema[0]["$ref"], "#/components/schemas/IdempotencyProblem", "{status}");
            let properties = &schema[1]["properties"];
            assert_eq!(properties["code"]["enum"], json!(codes(operation(&whole[0]), status)), "{status}");
            assert_eq!(properties["status"]["enum"], json!([status.parse::<u16>().expect("a number")]));
            assert!(
                properties["code"]["enum"]
                    .as_array()
                    .is_some_and(|codes| codes.iter().all(|code| every.contains(code)))
            );
        }
    }
    let own = serde_json::to_value(Api::openapi()).expect("JSON");
    let own = &own["paths"]["/own"]["post"]["responses"]["503"]["content"]["application/problem+json"];
    assert_eq!(own["schema"]["$ref"], "#/components/schemas/ApiError", "what the user wrote stays");
}

/// The codes of the component are those that the pages explain.
#[test]
fn every_code_of_the_component_is_in_both_tables() {
    #[derive(OpenApi)]
    #[openapi(paths(above::create_charge), modifiers(&ProblemComponent))]
    struct Api;
    let document = serde_json::to_value(Api::openapi()).expect("JSON");
    let codes = &document["components"]["schemas"]["IdempotencyProblem"]["properties"]["code"]["enum"];
    let codes: Vec<&str> = codes.as_array().expect("codes").iter().filter_map(Value::as_str).collect();
    assert!(codes.len() >= 15, "{codes:?}");
    for (name, cell) in [("guide/rejections.md", 3), ("rejection/stripe.rs", 1)] {
        let path = format!("{}/../idempotent-runtime/src/{name}", env!("CARGO_MANIFEST_DIR"));
        let page = std::fs::read_to_string(path).expect("the page is text");
        let rows = page.lines().map(|line| line.trim_start_matches("/// ")).filter(|line| line.starts_with("| "));
        let listed: Vec<&str> =
            rows.filter_map(|row| row.split('|').nth(cell)).map(|cell| cell.trim().trim_matches('`')).collect();
        let missing: Vec<_> = codes.iter().filter(|code| !listed.contains(code)).collect();
        assert!(missing.is_empty(), "{name}: {missing:?}");
    }
}

/// Says all of it itself.
#[utoipa::path(post, path = "/own",
    params(("Idempotency-Key" = String, Header, description = "mine")),
    responses(
        (status = 200, headers(("Idempotent-Replayed" = bool, description = "mine"))),
        (status = 503, description = "mine", content_type = "application/problem+json", body = ApiError),
    ),
    extensions(("x-idempotency" = json!("mine"))),
)]
#[idempotent(scope = "own")]
async fn own_words() -> StatusCode {
    StatusCode::OK
}

#[test]
fn nothing_that_the_user_documented_is_replaced() {
    for document in documents!(own_words) {
        let operation = operation(&document);
        assert_eq!(operation["parameters"].as_array().map(Vec::len), Some(1));
        assert_eq!(key_parameter(operation).expect("a header")["description"], "mine");
        let responses = &operation["responses"];
        assert_eq!(responses["200"]["headers"].as_object().map(serde_json::Map::len), Some(1));
        assert_eq!(responses["503"]["description"], "mine");
        let problem = &responses["503"]["content"]["application/problem+json"];
        assert_eq!(problem["schema"]["$ref"], "#/components/schemas/ApiError");
        assert_eq!(operation["x-idempotency"], "mine");
    }
}

#[utoipa::path(post, path = "/orders", responses(
    (status = 200), (status = 402), (status = "4XX", body = ApiError), (status = "default"),
))]
#[idempotent(scope = "ordered", cache = [200, 402])]
async fn order() -> StatusCode {
    StatusCode::OK
}

#[test]
fn range_has_no_replay_header_of_a_status_beside_it() {
    for document in documents!(order) {
        let responses = &operation(&document)["responses"];
        for (status, is_recorded) in [("200", true), ("402", true), ("4XX", false), ("default", false)] {
            let header = &responses[status]["headers"]["idempotent-replayed"];
            assert_eq!(header.is_object(), is_recorded, "{status}");
            assert!(responses[status]["description"].as_str().is_some_and(|text| !text.is_empty()), "{status}");
        }
    }
}

/// The key is in the body.
#[utoipa::path(post, path = "/events", responses((status = 204)))]
#[idempotent(scope = "events", key = event.to_string(), fingerprint = none, caller = "network", invalid_key = "ignore")]
async fn event(Json(event): Json<u64>) -> StatusCode {
    let _ = event;
    StatusCode::NO_CONTENT
}

#[test]
fn key_from_the_arguments_documents_no_header() {
    for document in documents!(event) {
        let operation = operation(&document);
        assert_eq!(key_parameter(operation), None);
        assert_eq!(operation["x-idempotency"]["header"], Value::Null);
        assert_eq!(operation["responses"]["400"], Value::Null, "a malformed key counts as none");
        assert_eq!(operation["responses"]["422"], Value::Null, "there is nothing that a reused key must repeat");
    }
}

mod unguarded {
    use super::*;

    #[utoipa::path(get, path = "/charges", tag = "money", responses((status = 200)))]
    pub(super) async fn list() -> StatusCode {
        StatusCode::OK
    }
}

#[utoipa::path(get, path = "/charges", tag = "money", responses((status = 200)))]
#[idempotent(scope = "listed")]
async fn list() -> StatusCode {
    StatusCode::OK
}

#[utoipa::path(method(get, post), path = "/search", responses((status = 200)))]
#[idempotent(scope = "searched", required)]
async fn search() -> StatusCode {
    StatusCode::OK
}

#[test]
fn methods_that_are_not_guarded_are_documented_as_they_are() {
    assert_eq!(documents!(list), documents!(unguarded::list), "the policy leaves GET alone");
    let document =
        serde_json::to_value(OpenApiRouter::<()>::new().routes(routes!(search)).into_openapi()).expect("JSON");
    for method in ["get", "post"] {
        let parameter = key_parameter(&document["paths"]["/search"][method]).expect("a header");
        assert_eq!(parameter["required"], false, "GET needs none");
        let operation = &document["paths"]["/search"][method];
        assert_eq!(operation["x-idempotency"]["methods"], json!(["POST"]));
        for description in [&parameter["description"], &operation["responses"]["409"]["description"]] {
            assert!(description.as_str().is_some_and(|text| text.ends_with(" Only for POST.")), "{description}");
        }
    }
}

/// `debug_handler` emits its function twice, above or below the other attributes.
mod checked {
    use super::*;

    #[axum::debug_handler]
    #[utoipa::path(post, path = "/one", responses((status = 200)))]
    #[idempotent(scope = "one")]
    pub(super) async fn one(Json(order): Json<u64>) -> StatusCode {
        let _ = order;
        StatusCode::OK
    }

    #[axum::debug_handler]
    #[idempotent(scope = "two")]
    #[utoipa::path(post, path = "/two", responses((status = 200)))]
    pub(super) async fn two(Json(order): Json<u64>) -> StatusCode {
        let _ = order;
        StatusCode::OK
    }

    #[utoipa::path(post, path = "/three", responses((status = 200)))]
    #[idempotent(scope = "three")]
    #[axum::debug_handler]
    pub(super) async fn three(Json(order): Json<u64>) -> StatusCode {
        let _ = order;
        StatusCode::OK
    }

    #[idempotent(scope = "four")]
    #[axum::debug_handler]
    #[utoipa::path(post, path = "/four", responses((status = 200)))]
    pub(super) async fn four(Json(order): Json<u64>) -> StatusCode {
        let _ = order;
        StatusCode::OK
    }
}

#[test]
fn handlers_under_a_check_document_themselves_too() {
    let [one, _] = documents!(checked::one);
    let [two, _] = documents!(checked::two);
    let [three, _] = documents!(checked::three);
    let [four, _] = documents!(checked::four);
    let scopes = [one, two, three, four].map(|document| operation(&document)["x-idempotency"]["scope"].clone());
    assert_eq!(scopes, ["one", "two", "three", "four"]);
}

/// Two modules with a handler of the same name. One of them is not annotated.
mod emitted {
    use super::*;

    macro_rules! handlers {
        ($($module:ident $scope:literal)*) => {
            $(pub(super) mod $module {
                use super::*;

                #[utoipa::path(post, path = "/emitted", responses((status = 200)))]
                #[idempotent(scope = $scope)]
                pub(crate) async fn create() -> StatusCode {
                    StatusCode::OK
                }
            })*
        };
    }
    handlers!(first "first");
    handlers!(second "second");

    pub(super) mod third {
        use super::*;

        #[utoipa::path(post, path = "/emitted", responses((status = 200)))]
        pub(crate) async fn create() -> StatusCode {
            StatusCode::OK
        }
    }
}

#[test]
fn handlers_of_one_name_document_themselves_each() {
    let documents =
        [documents!(emitted::first::create), documents!(emitted::second::create), documents!(emitted::third::create)];
    let scopes = documents.each_ref().map(|[document, _]| &operation(document)["x-idempotency"]["scope"]);
    assert_eq!(scopes, [&json!("first"), &json!("second"), &Value::Null]);
}

mod raw {
    pub(super) mod r#type {
        use super::super::*;

        #[utoipa::path(post, path = "/raw", responses((status = 200)))]
        #[idempotent(scope = "raw")]
        pub(crate) async fn r#match() -> StatusCode {
            StatusCode::OK
        }
    }
}

#[test]
fn a_handler_whose_name_is_a_keyword_documents_itself() {
    let operation = serde_json::to_value(raw::r#type::__path_match::operation()).expect("JSON");
    assert_eq!(operation["x-idempotency"]["scope"], "raw");
    let _: axum::Router = axum::Router::new().route("/raw", axum::routing::post(raw::r#type::r#match));
}

/// A handler without a document, in a module that imports the name of another handler's type.
mod in_sight {
    use super::emitted::third::*;
    use super::*;

    #[idempotent(scope = "fourth")]
    pub(super) async fn create() -> StatusCode {
        StatusCode::OK
    }
}

#[test]
fn no_handler_speaks_for_another_one_of_its_name() {
    let _: axum::Router = axum::Router::new().route("/", axum::routing::post(in_sight::create));
    for document in documents!(emitted::third::create) {
        assert_eq!(operation(&document)["x-idempotency"], Value::Null);
    }
}
