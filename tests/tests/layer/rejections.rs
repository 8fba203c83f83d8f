//! Rejections of an inner guard: the outer guard never records them, whatever the keys of the two requests are.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use idempotent_runtime::store::{SqliteStore, StoreAdmin};
use idempotent_runtime::{IdempotencyLayer, Policy, RecordKey, Registry, RegistryBuilder, Tx, idempotent, rejection};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{FaultyStore, Runs, Server};
use sqlx::Sqlite;
use tower::ServiceExt;

/// The runs of the inner handler, and the registry of its guard.
type Inner = (Runs, Registry);

fn layer(scope: &str, registry: &Registry) -> IdempotencyLayer {
    let policy = Policy::builder(scope).cache((200..=299).chain([409])).build().expect("a valid policy");
    IdempotencyLayer::new(policy).with_registry(registry.clone())
}

/// Gives each tenant its own keys.
fn prefix(request: &mut Request) {
    let key = request.headers()["idempotency-key"].to_str().expect("visible characters");
    let key = HeaderValue::from_str(&format!("a-{key}")).expect("a value");
    request.headers_mut().insert("idempotency-key", key);
}

async fn prefixing(mut request: Request, next: Next) -> Response {
    prefix(&mut request);
    next.run(request).await
}

#[idempotent(scope = "rejections-inner")]
async fn inner(State((runs, _)): State<Inner>, _: Bytes) -> String {
    format!("run {}", runs.run().await)
}

async fn plain(State((runs, _)): State<Inner>, _: Bytes) -> String {
    format!("run {}", runs.run().await)
}

fn inner_router(state: &Inner) -> Router {
    Router::new().fallback(inner).layer(state.1.layer()).with_state(state.clone())
}

#[idempotent(scope = "rejections-forwards", cache = [200, 409])]
async fn forwards(State(state): State<Inner>, mut request: Request) -> Response {
    prefix(&mut request);
    inner_router(&state).oneshot(request).await.expect("a router answers")
}

/// Nothing links the request to the guard of its sender.
#[idempotent(scope = "rejections-spawns", cache = [200, 409])]
async fn spawns(State(state): State<Inner>, _: Bytes) -> Response {
    let request = Request::post("/").header("idempotency-key", "a-k").body(Body::empty()).expect("a request");
    let sending = tokio::spawn(inner_router(&state).oneshot(request));
    sending.await.expect("it does not panic").expect("a router answers")
}

#[idempotent(scope = "rejections-in-tx", cache = [200, 409])]
async fn in_tx(State(state): State<Inner>, mut tx: Tx<Sqlite>, mut request: Request) -> Response {
    sqlx::query("INSERT INTO charges (id) VALUES ('charge')").execute(&mut *tx).await.expect("it is inserted");
    if !request.headers().contains_key("idempotency-key") {
        request.headers_mut().insert("idempotency-key", HeaderValue::from_static("k"));
    }
    prefix(&mut request);
    inner_router(&state).oneshot(request).await.expect("a router answers")
}

/// The scope of each inner guard, and a router with the guards around it.
fn apps(state: &Inner, sqlite: &SqliteStore) -> [(&'static str, Router); 5] {
    let registry = &state.1;
    let app = |route| Router::new().route("/", route).with_state(state.clone());
    [
        (
            "rejections-inner",
            app(post(inner)).layer(registry.layer()).layer(from_fn(prefixing)).layer(layer("rejections-api", registry)),
        ),
        (
            "rejections-layer",
            app(post(plain))
                .layer(layer("rejections-layer", registry))
                .layer(from_fn(prefixing))
                .layer(layer("rejections-api-2", registry)),
        ),
        ("rejections-inner", app(post(forwards)).layer(registry.layer())),
        ("rejections-inner", app(post(spawns)).layer(registry.layer())),
        ("rejections-inner", app(post(in_tx)).layer(Registry::new(sqlite.clone()).layer())),
    ]
}

#[tokio::test]
async fn rejection_under_another_key_is_not_recorded() {
    let rendered: [fn(RegistryBuilder) -> RegistryBuilder; 3] = [
        |registry| registry,
        |registry| registry.render_rejections(rejection::stripe),
        |registry| registry.render_rejections(|_, _| StatusCode::CONFLICT.into_response()),
    ];
    for (dialect, render) in rendered.into_iter().enumerate() {
        for number in 0..5 {
            let (file, store, runs) = (SqliteFile::new(), FaultyStore::new(), Runs::free());
            file.execute("CREATE TABLE charges (id TEXT)").await;
            let sqlite = SqliteStore::open(file.path()).await.expect("the file opens");
            let state = (runs.clone(), render(Registry::builder(store.clone())).build());
            let (scope, app) = apps(&state, &sqlite)[number].clone();
            let key = RecordKey::new(scope, None, "a-k");
            let other = store.seed_in_flight(key.clone()).await;
            let server = Server::start(app).await;
            for _ in 1..=2 {
                let rejected = server.post_with_key("/", "k").await;
                assert_eq!(
                    (rejected.status, rejected.is_replay()),
                    (StatusCode::CONFLICT, false),
                    "{dialect} {number}"
                );
            }
            assert_eq!(file.number("SELECT count(*) FROM charges").await, 0, "{dialect} {number}");
            assert!(store.purge(&key).await.expect("the store answers"));
            drop(other);
            for is_replay in [false, true] {
                let answer = server.post_with_key("/", "k").await;
                assert_eq!((answer.text(), answer.is_replay()), ("run 1", is_replay), "{dialect} {number}");
            }
            assert_eq!(file.number("SELECT count(*) FROM charges").await, i64::from(number == 4));
        }
    }
}

#[tokio::test]
async fn rejection_that_a_handler_hands_on_is_not_committed() {
    let (file, store, runs) = (SqliteFile::new(), FaultyStore::new(), Runs::free());
    file.execute("CREATE TABLE charges (id TEXT)").await;
    let sqlite = SqliteStore::open(file.path()).await.expect("the file opens");
    let state = (runs, Registry::new(store.clone()));
    let _other = store.seed_in_flight(RecordKey::new("rejections-inner", None, "a-k")).await;
    let app = Router::new().route("/", post(in_tx)).with_state(state).layer(Registry::new(sqlite).layer());
    let server = Server::start(app).await;
    let rejected = idempotent_tests::answer(server.post("/")).await;
    assert_eq!(rejected.rejection(), "in_flight");
    assert_eq!(file.number("SELECT count(*) FROM charges").await, 0);
}

/// Calls the inner handler for two parts, and makes one response of both answers.
#[idempotent(scope = "rejections-summary", cache = [200, 409])]
async fn summarises(State(state): State<Inner>, mut request: Request) -> (StatusCode, &'static str) {
    prefix(&mut request);
    let rejected = inner_router(&state).oneshot(request).await.expect("a router answers");
    (rejected.status(), "no part is done")
}

#[tokio::test]
async fn own_response_beside_a_rejected_part_is_recorded() {
    let (store, runs) = (FaultyStore::new(), Runs::free());
    let state = (runs, Registry::new(store.clone()));
    let _other = store.seed_in_flight(RecordKey::new("rejections-inner", None, "a-k")).await;
    let app = Router::new().route("/", post(summarises)).layer(state.1.layer()).with_state(state);
    let server = Server::start(app).await;
    for is_replay in [false, true] {
        let answer = server.post_with_key("/", "k").await;
        assert_eq!((answer.status, answer.is_replay()), (StatusCode::CONFLICT, is_replay));
    }
}
