//! Requests whose URI a middleware has rewritten: they are still distinguished by the part that was removed from the
//! URI.

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{IdempotencyLayer, Policy, Registry, idempotent};
use idempotent_tests::{Runs, Server};
use tower::ServiceExt;

#[derive(Clone)]
struct Tenant(String);

#[idempotent(scope = "targets-tenants")]
async fn of_tenant(Extension(Tenant(tenant)): Extension<Tenant>, _: Bytes) -> String {
    format!("of {tenant}")
}

#[idempotent(scope = "targets-values", fingerprint = 0)]
async fn by_value(Extension(Tenant(tenant)): Extension<Tenant>, _: Bytes) -> String {
    format!("of {tenant}")
}

/// Removes the tenant from the first segment of the path, the query, or the authority.
async fn take_tenant(mut request: Request, next: Next) -> Response {
    let uri = request.uri();
    let in_query = uri.query().and_then(|query| query.strip_prefix("tenant="));
    let in_authority = || uri.authority().map(Authority::host);
    let tenant = in_query.or_else(in_authority).or_else(|| uri.path().split('/').nth(1));
    let tenant = Tenant(tenant.unwrap_or_default().to_owned());
    *request.uri_mut() = "/charge".parse().expect("a path");
    request.extensions_mut().insert(tenant);
    next.run(request).await
}

fn tenants() -> Router {
    Router::new()
        .route("/{tenant}/charges", post(of_tenant))
        .route("/{tenant}/charge", post(of_tenant))
        .route("/{tenant}/values", post(by_value))
        .fallback(of_tenant)
        .layer(Registry::new(MemoryStore::new()).layer())
        .layer(from_fn(take_tenant))
}

#[tokio::test]
async fn tenants_in_a_rewritten_path_or_query_are_told_apart() {
    let server = Server::start(tenants()).await;
    for (path, others) in [
        ("/a/charges", "/b/charges"),
        // Apart from the query, this could be the work of a nested router.
        ("/a/charge?tenant=c", "/b/charge?tenant=c"),
        ("/a/values?tenant=c", "/b/values?tenant=c"),
        ("/a/others", "/b/others"),
        ("/charge?tenant=a", "/charge?tenant=b"),
        ("/others?tenant=a", "/others?tenant=b"),
        // Both are routed as `/charge`.
        ("/a/charge", "/a"),
    ] {
        for is_replay in [false, true] {
            let answer = server.post_with_key(path, path).await;
            assert_eq!((answer.status.as_u16(), answer.is_replay()), (200, is_replay), "{path}");
        }
        assert_eq!(server.post_with_key(others, path).await.rejection(), "key_reused", "{path}");
    }
}

/// As with HTTP/2, where no header repeats the authority.
#[tokio::test]
async fn tenants_in_a_rewritten_authority_are_told_apart() {
    let app = tenants();
    let send = async |uri: &str| {
        let request = Request::post(uri).header("idempotency-key", "k").body(Body::empty()).expect("a request");
        app.clone().oneshot(request).await.expect("a router answers").status().as_u16()
    };
    assert_eq!(send("http://a.example/charge").await, 200);
    assert_eq!(send("http://A.example:81/charge").await, 200, "its host in another case, and on another port");
    assert_eq!(send("http://b.example/charge").await, 422);
}

#[idempotent(scope = "targets-spelling")]
async fn spelled(State(runs): State<Runs>, _: Bytes) -> String {
    format!("run {}", runs.run().await)
}

/// A middleware that normalises the path.
async fn normalise(mut request: Request, next: Next) -> Response {
    let path = request.uri().path().to_lowercase().replace("//", "/").replace("%7e", "~");
    let mut query: Vec<_> = request.uri().query().unwrap_or_default().split('&').collect();
    query.sort_unstable();
    let query = query.join("&");
    let query = if query.is_empty() { query } else { format!("?{query}") };
    *request.uri_mut() = format!("/{}{query}", path.trim_matches('/')).parse().expect("a URI");
    next.run(request).await
}

#[tokio::test]
async fn retry_in_another_spelling_of_a_normalised_path_replays() {
    let runs = Runs::free();
    let accounts = Router::new().route("/accounts/{id}", post(spelled)).with_state(runs.clone());
    let inner = accounts.fallback(spelled).with_state(runs.clone()).layer(from_fn(normalise));
    let registry = Registry::new(MemoryStore::new());
    let server = Server::start(Router::new().fallback_service(inner).layer(registry.layer())).await;
    for spellings in [
        ["/charges/", "/charges", "//charges", "/Charges", "/charges"],
        ["/accounts/1", "/accounts/1/", "/accounts//1", "/Accounts/1", "/accounts/1"],
        ["/~me", "/%7Eme", "/%7eme/", "/~Me", "/~me"],
        ["/by?a=1&b=2", "/by?b=2&a=1", "/by/?a=1&b=2", "/By?a=1&b=2", "/by?a=1&b=2"],
    ] {
        let before = runs.started();
        for spelling in spellings {
            let answer = server.post_with_key(spelling, spellings[0]).await;
            assert_eq!(answer.text(), format!("run {}", before + 1), "{spelling}");
        }
        assert_eq!(runs.started(), before + 1);
    }
}

/// Routers that strip a part of the path, inside of a middleware that normalises it: before or after the path is
/// matched.
fn stripping(runs: &Runs) -> [(&'static str, bool, Router); 8] {
    let inner = || Router::new().route("/accounts/{id}", post(spelled)).with_state(runs.clone());
    let registry = Registry::new(MemoryStore::new());
    let layer = || IdempotencyLayer::new(Policy::builder("targets-stripped").build().expect("a valid policy"));
    let plain = async |State(runs): State<Runs>| format!("run {}", runs.run().await);
    let strip = async |mut request: Request, next: Next| {
        let path = request.uri().path().strip_prefix("/api").expect("it has the prefix").to_owned();
        *request.uri_mut() = path.parse().expect("a path");
        next.run(request).await
    };
    let before = |app: Router| Router::new().fallback_service(app).layer(from_fn(normalise));
    let after = |app: Router| app.layer(from_fn(normalise));
    let guarded = Router::new().route("/accounts/{id}", post(plain)).with_state(runs.clone()).layer(layer());
    [
        ("/api", false, after(Router::new().nest("/api", inner()))),
        ("/api", true, before(Router::new().nest("/api", inner()))),
        ("/api/v1", true, before(Router::new().nest("/api", Router::new().nest("/v1", inner())))),
        ("/tenants/~1", true, before(Router::new().nest("/tenants/{tenant}", inner()))),
        ("/api", true, before(Router::new().nest_service("/api", inner()))),
        ("/api", true, before(Router::new().nest("/api", Router::new().fallback(spelled).with_state(runs.clone())))),
        ("/api", true, before(Router::new().nest("/api", guarded))),
        ("/api", false, before(Router::new().fallback_service(inner()).layer(from_fn(strip)))),
    ]
    .map(|(prefix, is_before, app)| (prefix, is_before, app.layer(registry.layer())))
}

#[tokio::test]
async fn retry_in_another_spelling_beneath_a_prefix_replays() {
    let runs = Runs::free();
    for (number, (prefix, is_before, app)) in stripping(&runs).into_iter().enumerate() {
        let server = Server::start(app).await;
        let before = runs.started();
        let spellings = ["/accounts/~me", "/accounts/%7Eme", "/accounts/%7eme"].map(|path| format!("{prefix}{path}"));
        let others = [format!("/{prefix}/Accounts/~me/"), format!("{}/accounts//~Me", prefix.to_uppercase())];
        let others = others.into_iter().filter(|_| is_before);
        let key = format!("k{number}");
        for path in spellings.into_iter().chain(others) {
            let answer = server.post_with_key(&path, &key).await;
            assert_eq!(answer.text(), format!("run {}", before + 1), "{number} {path}");
        }
        for path in ["/accounts/~you", "/accounts/me"].map(|path| format!("{prefix}{path}")) {
            assert_eq!(server.post_with_key(&path, &key).await.rejection(), "key_reused", "{number} {path}");
        }
        assert_eq!(runs.started(), before + 1);
    }
}

/// Removes the tenant from the first segment of the path, in front of a nested router.
async fn replace_tenant(mut request: Request, next: Next) -> Response {
    let tenant = request.uri().path().split('/').nth(1).unwrap_or_default().to_owned();
    let path = request.uri().path().replacen(&tenant, "api", 1);
    *request.uri_mut() = path.parse().expect("a path");
    request.extensions_mut().insert(Tenant(tenant));
    next.run(request).await
}

#[tokio::test]
async fn tenants_in_front_of_a_nested_router_are_told_apart() {
    let charges = || Router::new().route("/charges", post(of_tenant));
    for (number, nested) in [
        Router::new().nest("/api", charges()),
        Router::new().nest("/{name}", charges()),
        Router::new().nest("/api", Router::new().fallback(of_tenant)),
        Router::new().nest_service("/{name}", charges()),
    ]
    .into_iter()
    .enumerate()
    {
        let app = Router::new().fallback_service(nested).layer(from_fn(replace_tenant));
        let server = Server::start(app.layer(Registry::new(MemoryStore::new()).layer())).await;
        for is_replay in [false, true] {
            let answer = server.post_with_key("/a/charges", "k").await;
            assert_eq!((answer.text(), answer.is_replay()), ("of a", is_replay), "{number}");
        }
        // Paths that differ in case are different, too.
        for others in ["/b/charges", "/A/charges"] {
            assert_eq!(server.post_with_key(others, "k").await.rejection(), "key_reused", "{number} {others}");
        }
    }
}
