//! At which paths the inspector answers, and which headers every answer has.

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use idempotent_runtime::Registry;
use idempotent_runtime::inspector::{self, Inspector, Operator};
use idempotent_runtime::store::MemoryStore;
use idempotent_tests::{Server, answer};
use reqwest::Method;

use crate::inspector::shop::Shop;

#[tokio::test]
async fn inspector_answers_operators_only() {
    let registry = Registry::new(MemoryStore::new());
    let open = || Inspector::new(&registry).allow_purge().router();
    let authenticated = || open().layer(from_fn(every_request_is_of_alice));
    let behind = |inspector: Router| {
        [
            ("", inspector.clone()),
            ("", Router::new().merge(inspector.clone())),
            ("/ops", Router::new().nest("/ops", inspector.clone())),
            ("/api", Router::new().nest("/api", Router::new().merge(inspector.clone()))),
            ("/admin/ops", Router::new().nest("/admin", Router::new().nest_service("/ops", inspector))),
        ]
    };
    for (at, router) in behind(open()).into_iter().chain(behind(inspector::router(&registry))) {
        let server = Server::start(router).await;
        let paths = ["/", "/api/summary", "/api/entries/0", "/nothing-here"];
        for (method, path) in paths.map(|path| (Method::GET, path)).into_iter().chain([(Method::POST, "/api/purge")]) {
            let rejected = answer(server.request(method, &format!("{at}{path}"))).await;
            // A nested router passes requests that it does not know to the outer router.
            if rejected.status == StatusCode::NOT_FOUND && !path.starts_with("/api/") {
                continue;
            }
            let told = (rejected.status, rejected.rejection());
            assert_eq!(told, (StatusCode::FORBIDDEN, "no_operator".to_owned()), "{at}{path}");
            assert!(rejected.text().contains("Operator::new(name)"), "{}", rejected.text());
        }
    }
    let trusting = Inspector::new(&registry).trust_everybody().router();
    for (at, router) in behind(authenticated()).into_iter().chain(behind(trusting)) {
        let server = Server::start(router).await;
        assert_eq!(
            answer(server.request(Method::GET, &format!("{at}/api/summary"))).await.status,
            StatusCode::OK,
            "{at}"
        );
    }
}

async fn every_request_is_of_alice(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Operator::new("alice"));
    next.run(request).await
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
