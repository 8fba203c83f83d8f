//! Entries that cannot be read are shown, and can be purged.

use axum::http::StatusCode;
use idempotent_runtime::Registry;
use idempotent_runtime::inspector::Inspector;
use idempotent_runtime::store::SqliteStore;
use idempotent_tests::sqlite::SqliteFile;
use serde_json::json;

use crate::inspector::shop::Shop;

const CHARGE: [(&str, &str); 3] = [("scope", "charges"), ("caller", "alice"), ("key", "completed-8e03978e")];

#[tokio::test]
async fn a_damaged_entry_is_found_and_purged() {
    let file = SqliteFile::new();
    let registry = Registry::new(SqliteStore::open(file.path()).await.expect("the store opens"));
    let shop = Shop::open(&registry, Inspector::new(&registry).allow_purge()).await;
    shop.charge("alice", "completed-8e03978e").await;
    shop.charge("alice", "unreadable-8e03978e").await;
    file.execute("UPDATE idempotency_records SET status = 7000 WHERE key LIKE '%completed%'").await;
    file.execute("UPDATE idempotency_records SET key = 'nonsense' WHERE key LIKE '%unreadable%'").await;

    let listed = shop.json("/api/entries?state=damaged").await;
    assert_eq!(listed["counts"]["damaged"], 2);
    let entries = listed["entries"].as_array().expect("a list");
    assert!(entries.iter().any(|entry| entry["id"].is_null() && entry["scope"].is_null()), "{listed}");
    let page = shop.get("").await;
    assert!(page.text().contains("unreadable") && page.text().contains("invalid status code"), "{}", page.text());

    let found = shop.form("/api/look-up", &CHARGE).await.json();
    assert_eq!((&found["entry"]["state"], &found["entry"]["scope"]), (&json!("damaged"), &json!("charges")));
    let confirm = found["confirm"].as_str().expect("it may be purged");
    let purged = shop.form("/api/purge", &[CHARGE[0], CHARGE[1], CHARGE[2], ("confirm", confirm)]).await;
    assert_eq!(purged.status, StatusCode::OK, "{}", purged.text());
    shop.charge("alice", "completed-8e03978e").await;
}
