//! The content length of a response without a body. For a `HEAD` request, it is the length that a `GET` would have.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use idempotent_runtime::store::{MemoryStore, SqliteStore};
use idempotent_runtime::{IdempotencyLayer, Policy, Registry, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Answer, Runs, Server, answer};

/// Returns the length of a file without reading the file.
async fn file(State(runs): State<Runs>) -> impl IntoResponse {
    ([(header::CONTENT_LENGTH, "1234"), (header::ETAG, "\"v1\"")], runs.run().await.to_string())
}

#[idempotent(scope = "head-any", methods = any)]
async fn of_any(runs: State<Runs>) -> Response {
    let (parts, _) = file(runs).await.into_response().into_parts();
    Response::from_parts(parts, Body::empty())
}

#[idempotent(scope = "head-only", methods = [HEAD])]
async fn of_head(runs: State<Runs>) -> Response {
    let (parts, _) = file(runs).await.into_response().into_parts();
    Response::from_parts(parts, Body::empty())
}

#[idempotent(scope = "head-body", methods = [HEAD])]
async fn of_body(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

#[idempotent(scope = "head-not-modified", methods = any, cache = all)]
async fn not_modified(State(runs): State<Runs>) -> impl IntoResponse {
    runs.run().await;
    (StatusCode::NOT_MODIFIED, [(header::CONTENT_LENGTH, "1234")])
}

#[idempotent(scope = "head-dropped", methods = any, drop_headers = ["content-length"])]
async fn dropped(runs: State<Runs>) -> Response {
    let (parts, _) = file(runs).await.into_response().into_parts();
    Response::from_parts(parts, Body::empty())
}

/// One key for `HEAD` and `GET`, because the policy compares nothing.
#[idempotent(scope = "head-and-get", methods = any, fingerprint = none)]
async fn of_both(method: Method, State(runs): State<Runs>) -> Response {
    let run = runs.run().await;
    if method == Method::HEAD {
        return ([(header::CONTENT_LENGTH, "1234")], Body::empty()).into_response();
    }
    format!("run {run}").into_response()
}

async fn length(server: &Server, method: Method, path: &str, key: &str) -> (Option<String>, Answer) {
    let answer = answer(server.request(method, path).header("idempotency-key", key)).await;
    let length = answer.headers.get(header::CONTENT_LENGTH).map(|length| length.to_str().expect("text").to_owned());
    (length, answer)
}

#[tokio::test]
async fn replay_of_a_head_request_has_its_content_length() {
    let (runs, file) = (Runs::free(), SqliteFile::new());
    let policy = Policy::builder("head-layer").methods([Method::HEAD]).build().expect("the policy is valid");
    let registry = Registry::new(SqliteStore::open(file.path()).await.expect("the store opens"));
    let around = IdempotencyLayer::new(policy).with_registry(registry.clone());
    let head_of_get = || axum::routing::get(async || "a body of 20 bytes..");
    let app = Router::new()
        .route("/any", any(of_any))
        .route("/head", any(of_head))
        .route("/body", any(of_body))
        .route("/not-modified", any(not_modified))
        .nest_service(
            "/layer",
            tower::ServiceBuilder::new().layer(around).service(Router::<()>::new().fallback_service(head_of_get())),
        )
        .with_state(runs.clone());
    let server = Server::start(app.layer(registry.layer())).await;
    for (path, expected) in
        [("/any", "1234"), ("/head", "1234"), ("/body", "5"), ("/not-modified", "1234"), ("/layer/file", "20")]
    {
        for is_replay in [false, true, true] {
            let (length, answer) = length(&server, Method::HEAD, path, &path.replace('/', "-")).await;
            assert_eq!((length.as_deref(), answer.is_replay()), (Some(expected), is_replay), "{path}");
        }
    }
}

#[tokio::test]
async fn content_length_of_a_head_is_no_other_requests() {
    let runs = Runs::free();
    let app = Router::new().route("/both", any(of_both)).route("/dropped", any(dropped)).with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(MemoryStore::new()).layer())).await;
    assert_eq!(length(&server, Method::HEAD, "/both", "a").await.0.as_deref(), Some("1234"));
    let (of_get, replay) = length(&server, Method::GET, "/both", "a").await;
    assert_eq!((of_get.as_deref(), replay.is_replay(), replay.text()), (Some("0"), true, ""));
    assert_eq!(length(&server, Method::GET, "/both", "b").await.1.text(), "run 2");
    assert_eq!(length(&server, Method::HEAD, "/both", "b").await.0.as_deref(), Some("5"));
    length(&server, Method::HEAD, "/dropped", "c").await;
    assert_eq!(length(&server, Method::HEAD, "/dropped", "c").await.0.as_deref(), Some("0"));
}
