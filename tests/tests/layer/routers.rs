//! A layer with `required` around the routes of a router. If no route matches, the router itself answers.

use axum::Router;
use axum::http::{Method, StatusCode};
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{IdempotencyLayer, Policy, Registry};
use idempotent_tests::{Runs, Server, answer};
use tower::{ServiceBuilder, service_fn};
use tower_http::trace::TraceLayer;

fn required(scope: &str) -> IdempotencyLayer {
    let policy = Policy::builder(scope).required().build().expect("the policy is valid");
    IdempotencyLayer::new(policy).with_registry(Registry::new(MemoryStore::new()))
}

fn routes(runs: &Runs) -> Router {
    let runs = runs.clone();
    Router::new().route("/charges", post(async move || format!("run {}", runs.run().await)))
}

async fn status(server: &Server, method: Method, path: &str) -> StatusCode {
    answer(server.request(method, path)).await.status
}

#[tokio::test]
async fn required_route_layer_leaves_404_and_405_to_the_router() {
    let runs = Runs::free();
    let runs_of_handler = runs.clone();
    let charge = post(async move || format!("run {}", runs_of_handler.run().await));
    let app = Router::new().route("/charges", charge.route_layer(required("routes-route-layer")));
    let server = Server::start(app).await;
    assert_eq!(status(&server, Method::POST, "/unknown").await, StatusCode::NOT_FOUND);
    assert_eq!(status(&server, Method::DELETE, "/charges").await, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer(server.post("/charges")).await.rejection(), "missing_key");
    assert_eq!(runs.started(), 0);
    assert_eq!(server.post_with_key("/charges", "k").await.text(), "run 1");
}

#[tokio::test]
async fn required_layer_of_a_router_leaves_404_to_the_router() {
    let runs = Runs::free();
    let stack = ServiceBuilder::new().layer(TraceLayer::new_for_http()).layer(required("routes-stack"));
    let nested = Router::new().nest("/api", routes(&runs)).layer(required("routes-nested"));
    let apps = [
        ("/charges", routes(&runs).layer(required("routes-layer"))),
        ("/charges", routes(&runs).route_layer(required("routes-of-router"))),
        ("/charges", routes(&runs).layer(stack)),
        ("/api/charges", nested),
        ("/api/charges", Router::new().nest("/api", routes(&runs).layer(required("routes-inner")))),
    ];
    for (path, app) in apps {
        let server = Server::start(app).await;
        for unknown in ["/unknown", "/api/unknown", "/api"] {
            assert_eq!(status(&server, Method::POST, unknown).await, StatusCode::NOT_FOUND, "{path} {unknown}");
        }
        assert_eq!(answer(server.post(path)).await.rejection(), "missing_key", "{path}");
        // The layer cannot distinguish the router's 405 from a handler.
        assert_eq!(answer(server.request(Method::DELETE, path)).await.rejection(), "missing_key", "{path}");
    }
    assert_eq!(runs.started(), 0);
}

/// The layer does not know what the inner service would do with the request.
#[tokio::test]
async fn required_layer_around_a_service_lets_nothing_pass() {
    let runs = Runs::free();
    let runs_of_service = runs.clone();
    let service = service_fn(move |_| {
        let runs = runs_of_service.clone();
        async move { Ok::<_, std::convert::Infallible>(axum::response::Response::new(format!("run {}", runs.run().await))) }
    });
    let whole = ServiceBuilder::new().layer(required("routes-whole")).service(routes(&runs));
    let nested = ServiceBuilder::new().layer(required("routes-nested-service")).service(routes(&runs));
    let fallback = ServiceBuilder::new().layer(required("routes-fallback")).service(service);
    let fallback_router = ServiceBuilder::new().layer(required("routes-fallback-router")).service(routes(&runs));
    let apps = [
        ("/charges", Router::new().fallback_service(whole)),
        ("/api/charges", Router::new().nest_service("/api", nested)),
        ("/charges", Router::new().fallback_service(fallback)),
        ("/charges", Router::new().fallback_service(fallback_router)),
        ("/charges", routes(&runs).layer(required("routes-handler"))),
    ];
    for (index, (path, app)) in apps.into_iter().enumerate() {
        let server = Server::start(app).await;
        assert_eq!(answer(server.post(path)).await.rejection(), "missing_key", "{index}");
    }
    assert_eq!(runs.started(), 0);
}
