//! Handlers that differ in which requests they guard.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, header};
use axum::routing::any;
use idempotent_runtime::{IdempotencyLayer, InvalidKeyPolicy, Policy, Registry, idempotent};
use idempotent_tests::Runs;
use reqwest::Method;

/// Begins its run before it reads the body. It reads none that its client must be asked for.
async fn length(runs: &Runs, request: Request) -> String {
    let run = runs.run().await;
    if request.headers().contains_key(header::EXPECT) {
        return format!("run {run}: unread");
    }
    let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.expect("the body arrives");
    format!("run {run}: {}", body.len())
}

#[idempotent(scope = "unguarded-default")]
async fn by_default(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-header", header = "x-request-id")]
pub(super) async fn by_header(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-header-json", header = "x-request-id", fingerprint = json)]
async fn by_header_json(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-methods", methods = [POST])]
async fn by_method(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-methods-required", methods = [POST], required)]
async fn by_method_required(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-any", methods = any)]
async fn by_any(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

fn key_of(headers: &HeaderMap) -> Option<&str> {
    headers.get("x-key")?.to_str().ok()
}

#[idempotent(scope = "unguarded-expression", key = key_of(&headers), methods = [POST])]
async fn by_expression(State(runs): State<Runs>, headers: HeaderMap, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-caller", header = "x-request-id", caller = key_of(&headers))]
async fn with_caller(State(runs): State<Runs>, headers: HeaderMap, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-ignored", invalid_key = "ignore")]
async fn ignores(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-ignored-format", invalid_key = "ignore", key_format = "uuid")]
async fn ignores_other_formats(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-format", key_format = "uuid")]
async fn by_format(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-length", min_key_length = 4)]
async fn by_length(State(runs): State<Runs>, body: Bytes) -> String {
    format!("run {}: {}", runs.run().await, body.len())
}

#[idempotent(scope = "unguarded-required", header = "x-request-id", required)]
async fn required(State(runs): State<Runs>, request: Request) -> String {
    length(&runs, request).await
}

#[idempotent(scope = "unguarded-required-bytes", header = "x-request-id", required)]
async fn required_bytes(State(runs): State<Runs>, body: Bytes) -> String {
    format!("run {}: {}", runs.run().await, body.len())
}

#[idempotent(scope = "unguarded-required-caller", header = "x-request-id", required, caller = body.len())]
async fn required_caller(State(runs): State<Runs>, body: Bytes) -> String {
    format!("run {}: {}", runs.run().await, body.len())
}

#[idempotent(scope = "unguarded-required-any", methods = any, required)]
async fn required_any(State(runs): State<Runs>, body: Bytes) -> String {
    format!("run {}: {}", runs.run().await, body.len())
}

#[idempotent(scope = "unguarded-bytes", header = "x-request-id")]
pub(super) async fn bytes(State(runs): State<Runs>, body: Bytes) -> String {
    format!("run {}: {}", runs.run().await, body.len())
}

#[idempotent(scope = "unguarded-bytes-caller", header = "x-request-id", caller = body.len())]
pub(super) async fn bytes_caller(State(runs): State<Runs>, body: Bytes) -> String {
    format!("run {}: {}", runs.run().await, body.len())
}

fn beneath(policy: Policy) -> Router<Runs> {
    let handler = async |State(runs): State<Runs>, request: Request| length(&runs, request).await;
    Router::new().route("/", any(handler)).layer(IdempotencyLayer::new(policy))
}

pub(super) fn app(runs: &Runs, registry: &Registry) -> Router {
    let ignoring =
        Policy::builder("unguarded-beneath").invalid_key(InvalidKeyPolicy::Ignore).build().expect("it is valid");
    let posts = Policy::builder("unguarded-beneath-posts").methods([Method::POST]).header("x-request-id");
    Router::new()
        .route("/default", any(by_default))
        .route("/header", any(by_header))
        .route("/header-json", any(by_header_json))
        .route("/methods", any(by_method))
        .route("/methods-required", any(by_method_required))
        .route("/any", any(by_any))
        .route("/expression", any(by_expression))
        .route("/caller", any(with_caller))
        .route("/ignored", any(ignores))
        .route("/ignored-format", any(ignores_other_formats))
        .route("/format", any(by_format))
        .route("/length", any(by_length))
        .route("/required", any(required))
        .route("/required-bytes", any(required_bytes))
        .route("/required-caller", any(required_caller))
        .route("/required-any", any(required_any))
        .route("/bytes", any(bytes))
        .route("/bytes-caller", any(bytes_caller))
        .nest("/beneath", beneath(ignoring))
        .nest("/beneath-posts", beneath(posts.build().expect("it is valid")))
        .layer(DefaultBodyLimit::disable())
        .with_state(runs.clone())
        .layer(registry.layer())
}
