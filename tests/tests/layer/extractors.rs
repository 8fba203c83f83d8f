//! Extractors that forward the request to another handler, and extractors that extract `Idempotency`: each handler has
//! its own execution, which its extractors find.

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::post;
use idempotent_runtime::store::{MemoryStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Idempotency, IdempotencyLayer, Policy, RecordKey, Registry, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Server, answer};
use sqlx::Sqlite;
use tower::ServiceExt;

/// Takes a step, and returns its result with the downstream key.
async fn ask(idempotency: &Idempotency) -> Result<String, Response> {
    idempotency.step("ask", async || Ok::<_, Response>(idempotency.downstream_key("bank"))).await
}

#[idempotent(scope = "extractors-authorize")]
async fn authorize(idempotency: Idempotency, _: Bytes) -> Result<String, Response> {
    ask(&idempotency).await
}

#[idempotent(scope = "extractors-authorize-last")]
async fn authorize_last(idempotency: Idempotency) -> Result<String, Response> {
    ask(&idempotency).await
}

/// The work of both authorizing handlers. Each gets its own request.
async fn authorized(request: Request, parts: Parts) -> String {
    let mut said = Vec::new();
    let copy = Request::from_parts(parts, Body::empty());
    for (router, request) in
        [(Router::new().fallback(authorize), request), (Router::new().fallback(authorize_last), copy)]
    {
        let response = router.oneshot(request).await.expect("a router answers");
        let body = to_bytes(response.into_body(), usize::MAX).await.expect("the body arrives");
        said.push(String::from_utf8(body.to_vec()).expect("it is text"));
    }
    said.join(" ")
}

/// Forwards the request itself.
struct Moved(String);

impl<S: Sync> FromRequest<S> for Moved {
    type Rejection = Response;

    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        let (parts, body) = request.into_parts();
        let copy = parts.clone();
        Ok(Self(authorized(Request::from_parts(parts, body), copy).await))
    }
}

/// Forwards copies of the request.
struct Copied(String);

impl<S: Sync> FromRequestParts<S> for Copied {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        Ok(Self(authorized(Request::from_parts(parts.clone(), Body::empty()), parts.clone()).await))
    }
}

/// Says whether the three handlers have three different keys.
async fn tell(idempotency: &Idempotency, authorized: &str) -> Result<String, Response> {
    let own = ask(idempotency).await?;
    let mut keys: Vec<&str> = authorized.split(' ').chain([own.as_str()]).collect();
    keys.sort_unstable();
    keys.dedup();
    Ok(format!("{} keys of {:?}", keys.len(), idempotency.key()))
}

#[idempotent(scope = "extractors-moved")]
async fn moved(idempotency: Idempotency, authorized: Moved) -> Result<String, Response> {
    tell(&idempotency, &authorized.0).await
}

#[idempotent(scope = "extractors-copied-last")]
async fn copied_last(idempotency: Idempotency, authorized: Copied) -> Result<String, Response> {
    tell(&idempotency, &authorized.0).await
}

#[idempotent(scope = "extractors-copied")]
async fn copied(idempotency: Idempotency, authorized: Copied, _: Bytes) -> Result<String, Response> {
    tell(&idempotency, &authorized.0).await
}

#[idempotent(scope = "extractors-copied-first")]
async fn copied_first(authorized: Copied, idempotency: Idempotency) -> Result<String, Response> {
    tell(&idempotency, &authorized.0).await
}

#[tokio::test]
async fn extractor_that_forwards_leaves_each_handler_its_own() {
    for is_under_a_layer in [false, true] {
        let store = MemoryStore::new();
        let registry = Registry::new(store.clone());
        let mut app = Router::new()
            .route("/moved", post(moved))
            .route("/copied-last", post(copied_last))
            .route("/copied", post(copied))
            .route("/copied-first", post(copied_first))
            .layer(registry.layer());
        if is_under_a_layer {
            let policy = Policy::builder("extractors-api").build().expect("a valid policy");
            app = app.layer(IdempotencyLayer::new(policy).with_registry(registry.clone()));
        }
        let server = Server::start(app).await;
        for name in ["moved", "copied-last", "copied", "copied-first"] {
            for is_replay in [false, true] {
                let answer = server.post_with_key(&format!("/{name}"), name).await;
                let expected = format!("3 keys of Some({name:?})");
                assert_eq!((answer.text(), answer.is_replay()), (expected.as_str(), is_replay), "{is_under_a_layer}");
            }
            for scope in ["extractors-authorize", "extractors-authorize-last", &format!("extractors-{name}")] {
                let step = RecordKey::new(scope, None, name).step("ask");
                assert!(store.get(&step).await.expect("the store answers").is_some(), "{scope} {name}");
            }
        }
    }
}

/// Everything that a handler can extract, and the request.
struct Context<const OF_A_COPY: bool> {
    idempotency: Idempotency,
    tx: Tx<Sqlite>,
    request: Request,
}

impl<S: Sync, const OF_A_COPY: bool> FromRequest<S> for Context<OF_A_COPY> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let mut copy = parts.clone();
        let asked = if OF_A_COPY { &mut copy } else { &mut parts };
        let Ok(idempotency) = Idempotency::from_request_parts(asked, state).await;
        let tx = Tx::from_request_parts(asked, state).await?;
        Ok(Self { idempotency, tx, request: Request::from_parts(parts, body) })
    }
}

async fn charge<const OF_A_COPY: bool>(first: Idempotency, context: Context<OF_A_COPY>) -> Result<String, Response> {
    let Context { idempotency, mut tx, request } = context;
    sqlx::query("INSERT INTO charges (id) VALUES ('charge')").execute(&mut *tx).await.expect("it is inserted");
    drop(tx);
    let response = Router::new().fallback(authorize).oneshot(request).await.expect("a router answers");
    let authorized = to_bytes(response.into_body(), usize::MAX).await.expect("the body arrives");
    let own = first.downstream_key("bank");
    let is_same = own == idempotency.downstream_key("bank") && first.key() == idempotency.key();
    Ok(format!("{is_same} {}", own.as_bytes() != &*authorized))
}

#[idempotent(scope = "extractors-own")]
async fn own(first: Idempotency, context: Context<false>) -> Result<String, Response> {
    charge(first, context).await
}

#[idempotent(scope = "extractors-own-copy")]
async fn own_copy(first: Idempotency, context: Context<true>) -> Result<String, Response> {
    charge(first, context).await
}

#[tokio::test]
async fn extractor_of_the_last_argument_finds_its_handlers_tx() {
    let file = SqliteFile::new();
    file.execute("CREATE TABLE charges (id TEXT)").await;
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    let app = Router::new().route("/own", post(own)).route("/own-copy", post(own_copy));
    let server = Server::start(app.layer(Registry::new(store).layer())).await;
    for path in ["/own", "/own-copy"] {
        for is_replay in [false, true] {
            let answer = server.post_with_key(path, path).await;
            assert_eq!((answer.text(), answer.is_replay()), ("true true", is_replay), "{path}");
        }
        assert_eq!(answer(server.post(path)).await.text(), "true true", "{path} without a key");
    }
    assert_eq!(file.number("SELECT count(*) FROM charges").await, 4);
}
