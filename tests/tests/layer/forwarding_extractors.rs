//! Extractors that extract what belongs to their handler, and send the request to another handler before their handler
//! runs.

use std::convert::Infallible;
use std::marker::PhantomData;

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::post;
use idempotent_runtime::store::{MemoryStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Idempotency, IdempotencyLayer, Policy, RecordKey, Registry, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Runs, Server};
use sqlx::Sqlite;
use tower::ServiceExt;

async fn forward(to: Router, request: Request) -> (StatusCode, String) {
    let response = to.oneshot(request).await.expect("a router answers");
    let status = response.status();
    let body = to_bytes(response.into_body(), usize::MAX).await.expect("the body arrives");
    (status, String::from_utf8(body.to_vec()).expect("it is text"))
}

#[idempotent(scope = "forwarding-extractors-authorize")]
async fn authorize(_: Bytes) -> &'static str {
    "yes"
}

#[idempotent(scope = "forwarding-extractors-authorize-tx")]
async fn authorize_in_tx(mut tx: Tx<Sqlite>, _: Bytes) -> &'static str {
    sqlx::query("INSERT INTO charges (id) VALUES ('authorized')").execute(&mut *tx).await.expect("it is inserted");
    "yes"
}

/// Extracts its handler's `Idempotency`, and then forwards the request.
struct Asks {
    idempotency: Idempotency,
    said: String,
}

impl<S: Sync> FromRequest<S> for Asks {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let Ok(idempotency) = Idempotency::from_request_parts(&mut parts, state).await;
        let (_, said) = forward(Router::new().fallback(authorize), Request::from_parts(parts, body)).await;
        Ok(Self { idempotency, said })
    }
}

#[idempotent(scope = "forwarding-extractors-first", cache = [402])]
async fn asks(
    State(runs): State<Runs>,
    first: Idempotency,
    Asks { idempotency, said }: Asks,
) -> Result<String, Response> {
    let charged = idempotency.step("charge", async || Ok::<_, Response>(runs.run().await)).await?;
    let is_same = first.downstream_key("bank") == idempotency.downstream_key("bank");
    Ok(format!("{said} {is_same} {charged}"))
}

#[tokio::test]
async fn forwarding_extractor_has_its_own_handlers_steps() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let app = Router::new().route("/", post(asks)).with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(store.clone()).layer())).await;
    for _attempt in 0..2 {
        assert_eq!((server.post_with_key("/", "k").await.text(), runs.started()), ("yes true 1", 1));
    }
    let step = RecordKey::new("forwarding-extractors-first", None, "k").step("charge");
    assert!(store.get(&step).await.expect("the store answers").is_some());
}

/// Extracts its handler's transaction, and then forwards the request.
struct AsksTx<const IN_TX: bool>(Tx<Sqlite>);

impl<S: Sync, const IN_TX: bool> FromRequest<S> for AsksTx<IN_TX> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let tx = Tx::from_request_parts(&mut parts, state).await?;
        let router = if IN_TX { Router::new().fallback(authorize_in_tx) } else { Router::new().fallback(authorize) };
        let said = forward(router, Request::from_parts(parts, body)).await;
        assert_eq!(said, (StatusCode::OK, "yes".to_owned()));
        Ok(Self(tx))
    }
}

async fn charge(mut tx: Tx<Sqlite>) -> &'static str {
    sqlx::query("INSERT INTO charges (id) VALUES ('charge')").execute(&mut *tx).await.expect("it is inserted");
    "charged"
}

#[idempotent(scope = "forwarding-extractors-tx")]
async fn asks_tx(AsksTx(tx): AsksTx<false>) -> &'static str {
    charge(tx).await
}

#[idempotent(scope = "forwarding-extractors-two-tx")]
async fn asks_tx_twice(AsksTx(tx): AsksTx<true>) -> &'static str {
    charge(tx).await
}

#[tokio::test]
async fn forwarding_extractor_has_its_own_handlers_tx() {
    let file = SqliteFile::new();
    file.execute("CREATE TABLE charges (id TEXT)").await;
    let store = SqliteStore::open(file.path()).await.expect("the file opens");
    let app = Router::new().route("/one", post(asks_tx)).route("/two", post(asks_tx_twice));
    let server = Server::start(app.layer(Registry::new(store).layer())).await;
    for (path, rows) in [("/one", 1), ("/two", 3)] {
        for is_replay in [false, true] {
            let answer = server.post_with_key(path, path).await;
            assert_eq!((answer.status.as_u16(), answer.is_replay()), (200, is_replay), "{path}");
        }
        assert_eq!(file.number("SELECT count(*) FROM charges").await, rows, "{path}");
    }
}

/// Rejects every request.
struct Rejects;

impl<S: Sync> FromRequestParts<S> for Rejects {
    type Rejection = StatusCode;

    async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        Err(StatusCode::UNAUTHORIZED)
    }
}

#[idempotent(scope = "forwarding-extractors-rejected")]
async fn rejected(_tx: Tx<Sqlite>, _: Rejects, _: Bytes) -> &'static str {
    "never"
}

async fn plain(idempotency: Idempotency) -> Result<String, Response> {
    idempotency.step("charge", async || Ok::<_, Response>("plain".to_owned())).await
}

/// The handler `H`'s response to the request.
struct Said<H>(String, PhantomData<H>);

trait ForwardedTo: Send {
    fn router() -> Router;
}

impl<S: Sync, H: ForwardedTo> FromRequest<S> for Said<H> {
    type Rejection = Infallible;

    async fn from_request(request: Request, _: &S) -> Result<Self, Infallible> {
        let (status, said) = forward(H::router(), request).await;
        let said = if status == StatusCode::OK { said } else { status.as_u16().to_string() };
        Ok(Self(said, PhantomData))
    }
}

struct OfRejected;

impl ForwardedTo for OfRejected {
    fn router() -> Router {
        Router::new().fallback(rejected)
    }
}

struct OfPlain;

impl ForwardedTo for OfPlain {
    fn router() -> Router {
        Router::new().fallback(plain)
    }
}

struct OfSameScope;

impl ForwardedTo for OfSameScope {
    fn router() -> Router {
        Router::new().fallback(same_scope)
    }
}

async fn take_a_step<H>(first: Idempotency, said: Said<H>) -> Result<String, Response> {
    let own = first.step("charge", async || Ok::<_, Response>("own".to_owned())).await?;
    Ok(format!("{} {own}", said.0))
}

#[idempotent(scope = "forwarding-extractors-a-rejected-one")]
async fn asks_rejected(first: Idempotency, said: Said<OfRejected>) -> Result<String, Response> {
    take_a_step(first, said).await
}

#[idempotent(scope = "forwarding-extractors-a-plain-one")]
async fn asks_plain(first: Idempotency, said: Said<OfPlain>) -> Result<String, Response> {
    take_a_step(first, said).await
}

#[idempotent(scope = "forwarding-extractors-same", shared_scope)]
async fn same_scope() -> &'static str {
    "alice"
}

#[idempotent(scope = "forwarding-extractors-same", shared_scope)]
async fn asks_same_scope(first: Idempotency, said: Said<OfSameScope>) -> Result<String, Response> {
    take_a_step(first, said).await
}

#[tokio::test]
async fn handler_shares_nothing_with_what_its_extractor_calls() {
    for is_beneath_a_layer in [false, true] {
        let registry = Registry::new(MemoryStore::new());
        let mut app = Router::new()
            .route("/rejected", post(asks_rejected))
            .route("/plain", post(asks_plain))
            .route("/same", post(asks_same_scope))
            .layer(registry.layer());
        if is_beneath_a_layer {
            let policy = Policy::builder("forwarding-extractors-same").build().expect("a valid policy");
            app = app.layer(IdempotencyLayer::new(policy).with_registry(registry.clone()));
        }
        let server = Server::start(app).await;
        for (path, expected) in [("/rejected", "401 own"), ("/plain", "plain own"), ("/same", "alice own")] {
            for is_replay in [false, true] {
                let answer = server.post_with_key(path, path).await;
                assert_eq!((answer.text(), answer.is_replay()), (expected, is_replay), "{path} {is_beneath_a_layer}");
            }
        }
    }
}
