//! Steps of several handlers under one claim: no handler gets the result of another one's step.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::post;
use http_body_util::BodyExt;
use idempotent_runtime::store::{MemoryStore, SqliteStore};
use idempotent_runtime::{Idempotency, IdempotencyLayer, Policy, Registry, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Runs, Server, answer};
use sqlx::Sqlite;
use tower::ServiceExt;

type Result<T, E = Response> = std::result::Result<T, E>;

/// Takes a step with this name, and returns its result.
async fn charge(runs: &Runs, idempotency: &Idempotency, name: &str, who: &str) -> Result<String> {
    idempotency.step(name, async || Ok::<_, Response>(format!("{who} {}", runs.run().await))).await
}

async fn forward(to: Router, request: Request) -> String {
    let response = to.oneshot(request).await.expect("a router answers");
    let (status, body) =
        (response.status(), response.into_body().collect().await.expect("the body arrives").to_bytes());
    match status {
        StatusCode::OK => String::from_utf8(body.to_vec()).expect("it is text"),
        _ => serde_json::from_slice::<serde_json::Value>(&body).expect("a rejection")["code"].to_string(),
    }
}

/// Returns the results of its own step and of the other handler's step. The query gives the order and the name of the
/// step.
#[idempotent(scope = "steps-of-two", shared_scope)]
async fn outer(State(runs): State<Runs>, idempotency: Idempotency, request: Request) -> Result<String> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let beneath = Router::new().fallback(inner).with_state(runs.clone());
    let name = if query.contains("own-name") { "charge-outer" } else { "charge" };
    if query.contains("inner-first") {
        let beneath = forward(beneath, request).await;
        let own = charge(&runs, &idempotency, name, "outer").await;
        return Ok(format!("{beneath}, {}", own.unwrap_or_else(|response| response.status().to_string())));
    }
    let own = charge(&runs, &idempotency, name, "outer").await?;
    Ok(format!("{own}, {}", forward(beneath, request).await))
}

#[idempotent(scope = "steps-of-two", shared_scope)]
async fn inner(State(runs): State<Runs>, idempotency: Idempotency) -> Result<String> {
    charge(&runs, &idempotency, "charge", "inner").await
}

/// Forwards to itself once.
#[idempotent(scope = "steps-of-one")]
async fn recursive(State(runs): State<Runs>, idempotency: Idempotency, mut request: Request) -> Result<String> {
    let own = charge(&runs, &idempotency, "charge", "recursive").await?;
    if request.headers_mut().insert("x-again", "1".parse().expect("a value")).is_some() {
        return Ok(own);
    }
    Ok(format!("{own}, {}", forward(Router::new().fallback(recursive).with_state(runs), request).await))
}

/// Inside of a layer, without a guard of its own.
async fn unguarded(State(runs): State<Runs>, idempotency: Idempotency, request: Request) -> Result<String> {
    let own = charge(&runs, &idempotency, "charge", "unguarded").await?;
    let (parts, _) = request.into_parts();
    let copy = Request::from_parts(parts.clone(), Body::empty());
    Ok(format!("{own}, {}", forward(Router::new().fallback(inner).with_state(runs), copy).await))
}

#[tokio::test]
async fn step_name_of_another_handler_under_one_claim_is_an_error() {
    let registry = Registry::new(MemoryStore::new());
    for (path, expected) in [
        ("/outer", r#"outer 1, "step_failed""#),
        ("/outer?inner-first", "inner 1, 500 Internal Server Error"),
        ("/outer?own-name", "outer 1, inner 2"),
        ("/outer?own-name&inner-first", "inner 1, outer 2"),
        ("/recursive", r#"recursive 1, "step_failed""#),
        ("/unguarded", r#"unguarded 1, "step_failed""#),
    ] {
        let runs = Runs::free();
        let policy = Policy::builder("steps-of-two").build().expect("a valid policy");
        let layer = IdempotencyLayer::new(policy).with_registry(registry.clone());
        let app = Router::new()
            .route("/outer", post(outer))
            .route("/recursive", post(recursive))
            .route("/unguarded", post(unguarded).layer(layer))
            .with_state(runs);
        let server = Server::start(app.layer(registry.layer())).await;
        for is_replay in [false, true] {
            let answer = server.post_with_key(path, &path.replace('?', "-")).await;
            assert_eq!((answer.text(), answer.is_replay()), (expected, is_replay), "{path}");
        }
    }
}

#[idempotent(scope = "steps-of-two", shared_scope)]
async fn in_transaction(_tx: Tx<Sqlite>, State(runs): State<Runs>, request: Request) -> String {
    forward(Router::new().fallback(inner).with_state(runs), request).await
}

/// A rollback would undo the writes of the step but not its result.
#[tokio::test]
async fn handler_under_the_claim_of_a_tx_has_no_steps() {
    let (file, runs) = (SqliteFile::new(), Runs::free());
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    let app = Router::new().route("/", post(in_transaction)).with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(store).layer())).await;
    assert_eq!((server.post_with_key("/", "k").await.text(), runs.started()), (r#""step_failed""#, 0));
}

/// Its first run fails after its step.
async fn fails_once(State(runs): State<Runs>, idempotency: Idempotency) -> Result<String> {
    let first = runs.started() == 0;
    let charged = charge(&runs, &idempotency, "charge", "run").await?;
    if first { Err(Response::builder().status(503).body(Body::empty()).expect("a response")) } else { Ok(charged) }
}

/// The handler has no key of its own, so the layer's key applies.
#[idempotent(scope = "steps-unkeyed")]
async fn fails_once_guarded(State(runs): State<Runs>, idempotency: Idempotency) -> Result<String> {
    let first = runs.started() == 0;
    let charged = charge(&runs, &idempotency, "charge", "run").await?;
    if first { Err(Response::builder().status(503).body(Body::empty()).expect("a response")) } else { Ok(charged) }
}

/// If a middleware calls a handler twice, these may be two parts of a batch.
#[tokio::test]
async fn handler_called_again_under_one_claim_repeats_no_step() {
    let retry = async |request: Request, next: Next| {
        let (parts, _) = request.into_parts();
        let copy = || Request::from_parts(parts.clone(), Body::empty());
        let first = next.clone().run(copy()).await;
        if first.status() == StatusCode::SERVICE_UNAVAILABLE { next.run(copy()).await } else { first }
    };
    let registry = Registry::new(MemoryStore::new());
    for path in ["/plain", "/guarded"] {
        let runs = Runs::free();
        let policy = Policy::builder("steps-retried").header("x-request-id").build().expect("a valid policy");
        let app = Router::new()
            .route("/plain", post(fails_once))
            .route("/guarded", post(fails_once_guarded))
            .with_state(runs.clone())
            .layer(registry.layer());
        let guarded = app.layer(from_fn(retry)).layer(IdempotencyLayer::new(policy).with_registry(registry.clone()));
        let server = Server::start(guarded).await;
        let send = || answer(server.post(path).header("x-request-id", path));
        assert_eq!((send().await.rejection().as_str(), runs.started()), ("step_failed", 1), "{path}");
        assert_eq!((send().await.text(), runs.started()), ("run 1", 1), "{path}: the client's retry");
    }
}
