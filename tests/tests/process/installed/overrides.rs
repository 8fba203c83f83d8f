//! If an installed registry overrides a policy, the program reports the overridden values of its handlers.

use std::time::Duration;

use axum::http::StatusCode;
use idempotent_runtime::{Policy, Registry, idempotent, policies, store::MemoryStore};
use idempotent_tests::alone;
use utoipa_axum::{router::OpenApiRouter, routes};

#[utoipa::path(post, path = "/overridden", responses((status = 200)))]
#[idempotent(scope = "overridden", ttl = "24h")]
async fn overridden() -> StatusCode {
    StatusCode::OK
}

fn documented() -> serde_json::Value {
    let document = OpenApiRouter::<()>::new().routes(routes!(overridden)).into_openapi();
    let document = serde_json::to_value(document).expect("JSON");
    document["paths"]["/overridden"]["post"]["x-idempotency"]["ttl"].clone()
}

fn listed() -> Option<Duration> {
    policies().find(|policy| policy.scope() == "overridden").map(Policy::ttl)
}

#[test]
fn installed_override_is_listed_and_documented() {
    if !alone(installed_override_is_listed_and_documented) {
        return;
    }
    assert_eq!((listed(), documented()), (Some(Duration::from_hours(24)), "24h".into()));
    let ttl = Duration::from_hours(72);
    let registry = Registry::builder(MemoryStore::new()).policy("overridden", |policy| policy.ttl(ttl));
    registry.expect("a valid override").store("payments", MemoryStore::new()).build().install().expect("the only one");
    assert_eq!((listed(), documented()), (Some(ttl), "72h".into()));
}
