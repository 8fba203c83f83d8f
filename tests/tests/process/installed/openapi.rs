//! The OpenAPI document contains what an installed registry says about rejections.

use axum::http::StatusCode;
use axum::response::IntoResponse;
use idempotent_runtime::{Registry, idempotent, store::MemoryStore};
use idempotent_tests::alone;
use serde_json::Value;
use utoipa_axum::{router::OpenApiRouter, routes};

#[utoipa::path(post, path = "/rendered", responses((status = 200)))]
#[idempotent(scope = "rendered")]
async fn rendered() -> StatusCode {
    StatusCode::OK
}

fn responses() -> Value {
    let document = OpenApiRouter::<()>::new().routes(routes!(rendered)).into_openapi();
    let document = serde_json::to_value(document).expect("JSON");
    document["paths"]["/rendered"]["post"]["responses"].clone()
}

#[test]
fn document_after_install_shows_no_problem_rendered_otherwise() {
    if !alone(document_after_install_shows_no_problem_rendered_otherwise) {
        return;
    }
    let before = responses();
    assert!(before["409"]["content"]["application/problem+json"].is_object());
    assert_eq!(before["429"], Value::Null, "no registry limits callers");

    let builder =
        Registry::builder(MemoryStore::new()).render_rejections(|rejection, _| rejection.status().into_response());
    builder.max_in_flight_per_caller(1).store("payments", MemoryStore::new()).build().install().expect("the only one");
    let after = responses();
    for status in ["400", "409", "422", "429", "503"] {
        assert!(after[status]["description"].is_string(), "{status}");
        assert_eq!(after[status]["content"], Value::Null, "{status}: only the renderer knows its shape");
    }
}
