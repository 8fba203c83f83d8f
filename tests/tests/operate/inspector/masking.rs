//! Complete keys are shown only on request, and the audit contains who asked.

use axum::http::StatusCode;
use idempotent_runtime::Registry;
use idempotent_runtime::inspector::{AUDIT_TARGET, Inspector};
use idempotent_runtime::store::{MemoryStore, StoreAdmin};
use idempotent_tests::Logs;
use serde_json::json;

use crate::inspector::shop::Shop;
use crate::inspector::stores::on_every_store;

on_every_store!(keys_are_masked_unless_asked_for);

async fn keys_are_masked_unless_asked_for(store: impl StoreAdmin + Clone) {
    let logs = Logs::collect();
    let registry = Registry::new(store.clone());
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_purge()).await;
    shop.leave_every_state(&store).await;
    shop.charge("alice", "4711").await;

    let id = shop.json("/api/entries?state=in_flight").await["entries"][0]["id"].as_str().expect("an id").to_owned();
    for path in ["", "?state=completed", "/api/entries", &format!("?id={id}"), &format!("/api/entries/{id}")] {
        let answer = shop.get(path).await;
        assert_eq!(answer.status, StatusCode::OK);
        for key in ["completed-8e", "unrecorded-8e", "running-8e", "cut-off-8e", "left-behind-8e", ">4711<", "\"4711\""]
        {
            assert!(!answer.text().contains(key), "{key} in {path}: {}", answer.text());
        }
    }
    let entry = &shop.json(&format!("/api/entries/{id}")).await["entry"];
    assert_eq!((&entry["key"], &entry["key_hint"]), (&json!(null), &json!("runn… (16)")));
    assert!(!logs.text().contains(AUDIT_TARGET), "looking at masked keys is not audited");

    for path in ["?reveal=keys", "/api/entries?reveal=keys", &format!("/api/entries/{id}?reveal=keys")] {
        assert!(shop.get(path).await.text().contains("running-8e03978e"), "{path}");
    }
    let audit: Vec<String> = logs.of_level("INFO").into_iter().filter(|line| line.contains(AUDIT_TARGET)).collect();
    assert_eq!(audit.len(), 3);
    for field in ["action=\"reveal_keys\"", "by=\"alice\"", "store=\"default\""] {
        assert!(audit[0].contains(field), "{field} in {}", audit[0]);
    }
    shop.runs.let_finish(1);
    shop.runs.until_finished(1).await;
}

#[tokio::test]
async fn anything_but_keys_cannot_be_revealed() {
    let registry = Registry::new(MemoryStore::new());
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    let answer = shop.get("/api/entries?reveal=bodies").await;
    assert_eq!((answer.status, answer.rejection().as_str()), (StatusCode::BAD_REQUEST, "unknown_reveal"));
}
