//! Where the inspector answers, and what comes with every answer.

use axum::Router;
use axum::http::StatusCode;
use idempotent_runtime::Registry;
use idempotent_runtime::inspector::{self, Inspector};
use idempotent_runtime::store::MemoryStore;
use idempotent_tests::{Server, answer};
use reqwest::Method;

use crate::inspector::shop::Shop;

#[tokio::test]
async fn it_answers_only_where_it_is_nested() {
    let registry = Registry::new(MemoryStore::new());
    let by_itself = Server::start(inspector::router(registry.clone())).await;
    let merged = Server::start(Router::new().merge(Inspector::new(&registry).allow_purge().router())).await;
    for server in [by_itself, merged] {
        for path in ["/", "/api/summary", "/api/entries/0"] {
            let rejected = answer(server.request(Method::GET, path)).await;
            assert_eq!(
                (rejected.status, rejected.rejection().as_str()),
                (StatusCode::FORBIDDEN, "not_nested"),
                "{path}"
            );
            assert!(rejected.text().contains(".layer(authentication)"), "{}", rejected.text());
        }
    }
    let nested = Server::start(Router::new().nest("/ops", inspector::router(&registry))).await;
    assert_eq!(answer(nested.request(Method::GET, "/ops/api/summary")).await.status, StatusCode::OK);
    let service = Router::new().nest_service("/ops", inspector::router(&registry));
    let deeper = Server::start(Router::new().nest("/admin", service)).await;
    assert_eq!(answer(deeper.request(Method::GET, "/admin/ops")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn nothing_is_kept_framed_or_loaded_from_elsewhere() {
    let registry = Registry::new(MemoryStore::new());
    let shop = Shop::open(&registry, Inspector::new(&registry)).await;
    for path in ["", "?state=nonsense", "/api/summary", "/api/entries?state=nonsense", "/api/purge"] {
        let headers = shop.get(path).await.headers;
        assert_eq!(headers["cache-control"], "no-store", "{path}");
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["referrer-policy"], "same-origin", "{path}");
        let policy = headers["content-security-policy"].to_str().expect("ASCII");
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{path}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
    }
    let page = shop.get("").await;
    for outside in ["<script", " src=", "http://", "https://", " style=", " onclick", "@import", "url("] {
        assert!(!page.text().contains(outside), "{outside}");
    }
}
