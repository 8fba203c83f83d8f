//! Looks up one key, by scope, caller and key.

use axum::http::StatusCode;
use idempotent_runtime::Registry;
use idempotent_runtime::inspector::Inspector;
use idempotent_runtime::store::{MemoryStore, StoreAdmin};
use serde_json::json;

use crate::inspector::shop::Shop;
use crate::inspector::stores::on_every_store;

on_every_store!(a_key_is_found_by_scope_caller_and_key);

async fn a_key_is_found_by_scope_caller_and_key(store: impl StoreAdmin + Clone) {
    let registry = Registry::new(store.clone());
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    shop.leave_every_state(&store).await;

    let key = ("key", "completed-8e03978e");
    let found = shop.form("/api/look-up", &[("scope", "charges"), ("caller", "alice"), key]).await;
    assert_eq!(found.status, StatusCode::OK, "{}", found.text());
    let told = found.json();
    assert_eq!((&told["entry"]["state"], &told["entry"]["caller"]), (&json!("completed"), &json!("alice")));
    assert_eq!(told["entry"]["fingerprint"].as_str().map(str::len), Some(16));
    assert!(told["confirm"].is_null(), "a read-only inspector does not mention purging: {told}");
    let id = told["entry"]["id"].as_str().expect("an id");
    assert_eq!(shop.json(&format!("/api/entries/{id}")).await["entry"]["status"], 201);

    for fields in [
        [("scope", "charges"), ("caller", "bob"), key],
        [("scope", "charges"), ("caller", ""), key],
        [("scope", "payouts"), ("caller", "alice"), key],
        [("scope", "charges"), ("caller", "alice"), ("key", "completed")],
    ] {
        let missing = shop.form("/api/look-up", &fields).await;
        assert_eq!((missing.status, missing.rejection().as_str()), (StatusCode::NOT_FOUND, "not_found"), "{fields:?}");
    }
    let missing = shop.get("/api/entries/00000000000000000000000000000000").await;
    assert_eq!((missing.status, missing.rejection().as_str()), (StatusCode::NOT_FOUND, "not_found"));

    let cut_off = [("action", "look_up"), ("scope", "transfers"), ("caller", ""), ("key", "cut-off-8e03978e")];
    let page = shop.form("", &cut_off).await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.text().contains("One entry") && page.text().contains("must not run again"), "{}", page.text());
}

#[tokio::test]
async fn a_registry_that_stores_digests_is_asked_by_the_key_itself() {
    let registry = Registry::builder(MemoryStore::new()).digest_keys().build();
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    shop.charge("alice", "completed-8e03978e").await;
    let fields = [("scope", "charges"), ("caller", "alice"), ("key", "completed-8e03978e"), ("reveal", "keys")];
    let told = shop.form("/api/look-up", &fields).await.json();
    assert_eq!(told["entry"]["key"].as_str().map(str::len), Some(64), "{told}");
    assert_eq!(shop.json("/api/summary").await["keys_are_digests"], true);
    assert!(shop.get("").await.text().contains("stores digests"));
}

#[tokio::test]
async fn each_store_of_the_registry_is_looked_at_by_its_name() {
    let registry = Registry::builder(MemoryStore::new()).store("empty", MemoryStore::new()).build();
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    shop.charge("alice", "completed-8e03978e").await;
    let summary = shop.json("/api/summary").await;
    assert_eq!((&summary["stores"], &summary["scanned"]), (&json!(["default", "empty"]), &json!(1)));
    assert_eq!(shop.json("/api/summary?store=default").await["scanned"], 1);
    let other = shop.json("/api/summary?store=empty").await;
    assert_eq!((&other["store"], &other["scanned"]), (&json!("empty"), &json!(0)));
    let unknown = shop.get("/api/summary?store=emtpy").await;
    assert_eq!((unknown.status, unknown.rejection().as_str()), (StatusCode::BAD_REQUEST, "unknown_store"));
    assert!(unknown.text().contains("write one of default, empty"), "{}", unknown.text());
    assert_eq!(shop.get("?store=emtpy").await.status, StatusCode::BAD_REQUEST);
}
