//! Events of the card network: forged, old, genuine and repeated ones.

use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use axum::response::Response;
use charges::signature::{HEADER, NetworkSecret};
use idempotent_runtime::testing::{self, assert_not_replayed, assert_replayed};
use serde_json::Value;
use tower::ServiceExt;

use crate::{Books, SECRET};

const EVENT: &str = r#"{"id": "evt_1", "charge": 1, "kind": "dispute"}"#;

fn secret(text: &str) -> NetworkSecret {
    text.parse().expect("it is long enough")
}

async fn deliver(router: &Router, signature: Option<String>) -> Response {
    let request = Request::post("/network-events").header(header::CONTENT_TYPE, "application/json");
    let request = signature.into_iter().fold(request, |request, signature| request.header(HEADER, signature));
    router.clone().oneshot(request.body(Body::from(EVENT)).expect("a request")).await.expect("a router answers")
}

#[tokio::test]
async fn forged_event_claims_nothing_and_the_genuine_one_runs() {
    let (books, registry) = (Books::open().await, testing::registry());
    let router = books.router(&registry);
    let now = SystemTime::now();
    let genuine = secret(SECRET).sign(EVENT.as_bytes());
    let forged = [
        None,
        Some(String::new()),
        Some("t=,v1=".to_owned()),
        Some(secret("a secret that is guessed").sign(EVENT.as_bytes())),
        Some(secret(SECRET).sign(b"another body")),
        Some(secret(SECRET).sign_at(now - Duration::from_mins(6), EVENT.as_bytes())),
        Some(secret(SECRET).sign_at(now + Duration::from_mins(6), EVENT.as_bytes())),
        Some(genuine.replace("v1=", "v0=")),
        Some(genuine.replace("t=", "t=0")),
    ];
    for signature in forged.clone() {
        let rejected = deliver(&router, signature.clone()).await;
        assert_eq!(rejected.status(), StatusCode::UNAUTHORIZED, "{signature:?}");
        let body = to_bytes(rejected.into_body(), 1024).await.expect("a whole body");
        assert_eq!(serde_json::from_slice::<Value>(&body).expect("JSON")["error"], "bad_signature");
    }
    assert_eq!((registry.store().claims(), registry.executions("network-events")), (0, 0));

    let first = deliver(&router, Some(genuine)).await;
    assert_eq!(first.status(), StatusCode::NO_CONTENT);
    assert_not_replayed(first.headers());
    // A redelivery is signed at another time, so it has another signature.
    let again = secret(SECRET).sign_at(now - Duration::from_mins(4), EVENT.as_bytes());
    assert_replayed(deliver(&router, Some(again)).await.headers());
    for signature in forged {
        let rejected = deliver(&router, signature).await;
        assert_eq!(rejected.status(), StatusCode::UNAUTHORIZED);
        assert_not_replayed(rejected.headers());
    }
    assert_eq!(registry.executions("network-events"), 1);
    assert_eq!(books.lines_and_times_asked().await, (1, 0));
}
