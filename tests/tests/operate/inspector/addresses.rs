//! Wrong requests get an answer that says what would be right.

use axum::http::StatusCode;
use idempotent_runtime::Registry;
use idempotent_runtime::inspector::Inspector;
use idempotent_runtime::store::MemoryStore;

use crate::inspector::shop::Shop;

#[tokio::test]
async fn a_wrong_parameter_is_told_what_would_be_right() {
    let registry = Registry::new(MemoryStore::new());
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    for (query, code, right) in [
        ("state=inflight", "unknown_state", "in_flight"),
        ("limit=0", "bad_limit", "from 1 to 1000000"),
        ("limit=many", "bad_limit", "from 1 to 1000000"),
        ("limit=1000001", "bad_limit", "from 1 to 1000000"),
        ("id=abc", "malformed_id", "32 hexadecimal digits"),
        ("scope=charges&key=k", "key_in_address", "by POST"),
        ("caller=alice", "key_in_address", "by POST"),
        ("stat=completed", "unreadable_parameters", "unknown field `stat`"),
    ] {
        let answer = shop.get(&format!("/api/entries?{query}")).await;
        assert_eq!((answer.status, answer.rejection().as_str()), (StatusCode::BAD_REQUEST, code), "{query}");
        assert!(answer.text().contains(right), "{query}: {}", answer.text());
        let page = shop.get(&format!("?{query}")).await;
        assert_eq!(page.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(page.text().contains("<!DOCTYPE html>"), "{query}: {}", page.text());
    }
    for (fields, code) in [
        (&[("scope", "charges")][..], "missing_key"),
        (&[("key", "k")], "missing_scope"),
        (&[("scope", "c"), ("key", "k"), ("id", "00000000000000000000000000000000")], "several_keys"),
    ] {
        let answer = shop.form("/api/look-up", fields).await;
        assert_eq!((answer.status, answer.rejection().as_str()), (StatusCode::BAD_REQUEST, code), "{fields:?}");
        assert_eq!(shop.form("", fields).await.status, StatusCode::BAD_REQUEST, "{fields:?}");
    }
}
