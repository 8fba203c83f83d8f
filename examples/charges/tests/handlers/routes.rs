//! Tests the routes, under a registry for each test: retries, duplicates, an unavailable store, time that passes.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use axum::response::Response;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::testing::{self, Fault, TestRegistry, assert_not_replayed, assert_replayed};
use idempotent_runtime::{RecordKey, Registry};
use serde_json::json;
use tower::ServiceExt;

use crate::{Books, order};

async fn charge(router: &Router, key: &str, amount: i64) -> Response {
    let request = Request::post("/charges")
        .header(header::AUTHORIZATION, "Bearer alice")
        .header(header::CONTENT_TYPE, "application/json")
        .header("idempotency-key", key)
        .body(Body::from(json!(order(amount)).to_string()))
        .expect("a request");
    router.clone().oneshot(request).await.expect("a router answers")
}

/// The record key of a charge by Alice with this key.
fn record_key(key: &str) -> RecordKey {
    RecordKey::new("charges", Some("alice"), key)
}

#[tokio::test]
async fn a_retry_gets_the_same_charge_and_no_money_moves() {
    let (books, registry) = (Books::open().await, testing::registry());
    let router = books.router(&registry);
    assert_not_replayed(charge(&router, "k", 1999).await.headers());
    assert_replayed(charge(&router, "k", 1999).await.headers());
    assert_eq!((registry.executions("charges"), registry.replays("charges")), (1, 1));
    assert_eq!(books.lines_and_times_asked().await, (1, 1));
}

#[tokio::test]
async fn a_key_that_is_used_for_another_amount_is_rejected() {
    let (books, registry) = (Books::open().await, testing::registry());
    let router = books.router(&registry);
    charge(&router, "k", 1999).await;
    assert_eq!(charge(&router, "k", 2999).await.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!((registry.executions("charges"), registry.rejections("charges", "key_reused")), (1, 1));
}

#[tokio::test]
async fn of_a_double_click_one_is_executed() {
    let (books, registry) = (Books::open().await, testing::registry());
    let router = books.router(&registry);
    let (first, second) = tokio::join!(charge(&router, "k", 1999), charge(&router, "k", 1999));
    assert_eq!((first.status(), second.status()), (StatusCode::CREATED, StatusCode::CONFLICT));
    assert_eq!((registry.executions("charges"), registry.rejections("charges", "in_flight")), (1, 1));
}

#[tokio::test]
async fn a_charge_that_another_process_makes_is_replayed_here() {
    let (books, registry) = (Books::open().await, testing::registry());
    let router = books.router(&registry);
    let other_process = registry.seed_in_flight(record_key("k")).await;
    assert_eq!(charge(&router, "k", 1999).await.status(), StatusCode::CONFLICT);
    other_process.complete((StatusCode::CREATED, "charged over there")).await.expect("the store answers");
    assert_replayed(charge(&router, "k", 1999).await.headers());
    assert_eq!(books.lines_and_times_asked().await, (0, 0));
}

#[tokio::test]
async fn a_charge_whose_process_died_runs_again_as_the_second_attempt() {
    let (books, registry) = (Books::open().await, testing::registry());
    let router = books.router(&registry);
    registry.seed_in_flight(record_key("k")).await.crash().await.expect("the store answers");
    assert_eq!(charge(&router, "k", 1999).await.status(), StatusCode::CREATED);
    let entries = books.app.ledger.entries().await.expect("the ledger is read");
    assert_eq!(entries[0].attempt, 2);
}

#[tokio::test]
async fn while_the_store_cannot_be_asked_nothing_is_charged() {
    let (books, registry) = (Books::open().await, testing::registry());
    let router = books.router(&registry);
    registry.store().on_claim(Fault::Hangs);
    // The request waits only for the store. With the paused clock, the store's time limit of two seconds passes at
    // once.
    tokio::time::pause();
    assert_eq!(charge(&router, "k", 1999).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    tokio::time::resume();
    assert_eq!(registry.rejections("charges", "store_unavailable"), 1);
    assert_eq!(books.lines_and_times_asked().await, (0, 0));
}

#[tokio::test]
async fn charge_not_recorded_at_once_is_recorded_later() {
    let limit = Duration::from_millis(100);
    let registry = TestRegistry::with_options(MemoryStore::new(), |options| options.store_timeout(limit));
    let books = Books::open().await;
    let router = books.router(&registry);
    registry.store().on_complete(Fault::Unreachable);
    assert_eq!(charge(&router, "k", 1999).await.status(), StatusCode::CREATED);
    assert_eq!(charge(&router, "k", 1999).await.status(), StatusCode::CONFLICT, "its claim is held meanwhile");
    registry.store().on_complete(Fault::None);
    assert_eq!(registry.drain(Duration::from_secs(30)).await, 0);
    assert_replayed(charge(&router, "k", 1999).await.headers());
    assert_eq!(registry.executions("charges"), 1);
}

#[tokio::test]
async fn after_a_day_a_key_is_new() {
    let (books, registry) = (Books::open().await, testing::registry());
    let router = books.router(&registry);
    charge(&router, "k", 1999).await;
    for (hours, executions) in [(23, 1), (2, 2)] {
        tokio::time::pause();
        tokio::time::advance(Duration::from_hours(hours)).await;
        tokio::time::resume();
        charge(&router, "k", 1999).await;
        assert_eq!(registry.executions("charges"), executions);
    }
}

/// Without records, the references protect the customer: by them, the ledger and the network recognise a repeated
/// request.
#[tokio::test]
async fn retry_without_records_moves_no_money() {
    let books = Books::open().await;
    let router = books.router(&Registry::disabled());
    for _ in 0..2 {
        assert_not_replayed(charge(&router, "k", 1999).await.headers());
    }
    assert_eq!(books.lines_and_times_asked().await, (1, 2));
}
