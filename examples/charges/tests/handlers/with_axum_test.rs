//! The same tests with axum-test.

use axum::http::StatusCode;
use axum_test::{TestRequest, TestServer};
use idempotent_runtime::testing::{self, assert_not_replayed, assert_replayed};
use serde_json::{Value, json};

use crate::{Books, order};

fn post(server: &TestServer, path: &str, key: &str) -> TestRequest {
    server.post(path).authorization_bearer("alice").add_header("idempotency-key", key)
}

#[tokio::test]
async fn a_charge_and_its_refund_are_executed_once_each() {
    let (books, registry) = (Books::open().await, testing::registry());
    let server = TestServer::new(books.router(&registry));
    let charged = post(&server, "/charges", "charge").json(&order(1000)).await;
    charged.assert_status(StatusCode::CREATED);
    assert_not_replayed(charged.headers());
    let again = post(&server, "/charges", "charge").json(&order(1000)).await;
    assert_replayed(again.headers());
    assert_eq!(again.json::<Value>(), charged.json::<Value>());

    let refund = json!({ "charge": charged.json::<Value>()["id"], "amount": 400 });
    for _ in 0..2 {
        post(&server, "/refunds", "refund").json(&refund).await.assert_status(StatusCode::CREATED);
    }
    assert_eq!((registry.executions("charges"), registry.executions("refunds")), (1, 1));
    assert_eq!((registry.replays("charges"), registry.replays("refunds")), (1, 1));
    assert_eq!(books.lines_and_times_asked().await, (2, 2));
}

#[tokio::test]
async fn a_refund_needs_a_key() {
    let (books, registry) = (Books::open().await, testing::registry());
    let server = TestServer::new(books.router(&registry));
    let rejected =
        server.post("/refunds").authorization_bearer("alice").json(&json!({ "charge": 1, "amount": 1 })).await;
    rejected.assert_status_bad_request();
    assert_eq!(rejected.json::<Value>()["code"], "missing_key");
    assert_eq!(registry.rejections("refunds", "missing_key"), 1);
}
