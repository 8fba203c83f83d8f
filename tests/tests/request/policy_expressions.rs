//! The expressions of a policy are the handler's own code: they may wait, fail and panic. They claim nothing.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{Answer, Runs, Server, answer};
use tower_http::catch_panic::CatchPanicLayer;

fn user(headers: &HeaderMap) -> Option<String> {
    headers.get("x-user")?.to_str().ok().map(str::to_owned)
}

/// Another task must run before the result is ready.
async fn looked_up(headers: &HeaderMap) -> String {
    let user = user(headers).unwrap_or_default();
    tokio::spawn(async move { user.to_uppercase() }).await.expect("it does not panic")
}

#[idempotent(scope = "expression-waits", caller = looked_up(&headers).await)]
async fn waits(State(runs): State<Runs>, headers: HeaderMap) -> String {
    format!("{:?} {}", user(&headers), runs.run().await)
}

#[idempotent(scope = "fails", caller = user(&headers).ok_or((StatusCode::UNAUTHORIZED, "who are you?"))?)]
async fn fails(State(runs): State<Runs>, headers: HeaderMap) -> Result<String, (StatusCode, &'static str)> {
    Ok(format!("{:?} {}", user(&headers), runs.run().await))
}

#[idempotent(scope = "panics", caller = user(&headers).expect("every request has a name"))]
async fn panics(State(runs): State<Runs>, headers: HeaderMap) -> String {
    format!("{:?} {}", user(&headers), runs.run().await)
}

async fn serve(runs: &Runs) -> Server {
    let app = Router::new()
        .route("/waits", post(waits))
        .route("/fails", post(fails))
        .route("/panics", post(panics))
        .with_state(runs.clone());
    Server::start(app.layer(Registry::new(MemoryStore::new()).layer()).layer(CatchPanicLayer::new())).await
}

async fn send(server: &Server, path: &str, user: Option<&str>) -> Answer {
    let mut request = server.post(path).header("idempotency-key", "k");
    if let Some(user) = user {
        request = request.header("x-user", user);
    }
    answer(request).await
}

#[tokio::test]
async fn an_expression_may_wait() {
    let runs = Runs::free();
    let server = serve(&runs).await;

    let first = send(&server, "/waits", Some("alice")).await;
    let replay = send(&server, "/waits", Some("alice")).await;
    let another = send(&server, "/waits", Some("bob")).await;

    assert_eq!((first.text(), first.is_replay()), (r#"Some("alice") 1"#, false));
    assert_eq!((replay.text(), replay.is_replay()), (first.text(), true));
    assert_eq!((another.text(), another.is_replay()), (r#"Some("bob") 2"#, false));
}

#[tokio::test]
async fn the_error_of_an_expression_is_the_answer_and_claims_nothing() {
    let runs = Runs::free();
    let server = serve(&runs).await;

    let unknown = send(&server, "/fails", None).await;
    assert_eq!((unknown.status, unknown.text()), (StatusCode::UNAUTHORIZED, "who are you?"));
    assert_eq!(runs.started(), 0);

    let first = send(&server, "/fails", Some("alice")).await;
    let replay = send(&server, "/fails", Some("alice")).await;
    let unknown_again = send(&server, "/fails", None).await;
    assert_eq!((first.text(), first.is_replay()), (r#"Some("alice") 1"#, false));
    assert_eq!((replay.text(), replay.is_replay()), (first.text(), true));
    assert_eq!(unknown_again.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn an_expression_that_panics_claims_nothing() {
    let runs = Runs::free();
    let server = serve(&runs).await;

    let panicked = send(&server, "/panics", None).await;
    assert_eq!((panicked.status, runs.started()), (StatusCode::INTERNAL_SERVER_ERROR, 0));

    let first = send(&server, "/panics", Some("alice")).await;
    assert_eq!((first.text(), first.is_replay()), (r#"Some("alice") 1"#, false));
}

#[idempotent(scope = "tuple-caller", caller = (header(&headers, "tenant"), &header(&headers, "x-user")))]
async fn by_tuple(headers: HeaderMap) -> String {
    header(&headers, "tenant")
}

#[idempotent(scope = "optional-caller", caller = headers.get("x-user").and_then(|user| user.to_str().ok()))]
async fn by_option(headers: HeaderMap) -> String {
    header(&headers, "x-user")
}

#[idempotent(scope = "optional-tuple-caller", caller = user(&headers).map(|user| (7, user)))]
async fn by_optional_tuple(headers: HeaderMap) -> String {
    header(&headers, "x-user")
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

async fn serve_callers(registry: Registry) -> Server {
    let app = Router::new()
        .route("/tuple", post(by_tuple))
        .route("/option", post(by_option))
        .route("/optional-tuple", post(by_optional_tuple))
        .layer(registry.layer());
    Server::start(app).await
}

#[tokio::test]
async fn caller_of_several_parts_is_not_confused_with_another() {
    let server = serve_callers(Registry::new(MemoryStore::new())).await;
    let post = |tenant: &'static str, user: &'static str| {
        let request = server.post("/tuple").header("idempotency-key", "k");
        answer(request.header("tenant", tenant).header("x-user", user))
    };
    for (tenant, user) in [("a", "b/c"), ("a/b", "c"), ("a\\", "b/c"), ("a\\/b", "c")] {
        for is_replay in [false, true] {
            let answer = post(tenant, user).await;
            assert_eq!((answer.text(), answer.is_replay()), (tenant, is_replay), "{tenant} {user}");
        }
    }
}

#[tokio::test]
async fn caller_that_is_none_leaves_it_to_the_registry() {
    for path in ["/option", "/optional-tuple"] {
        let server = serve_callers(Registry::new(MemoryStore::new())).await;
        let post = |user: Option<&'static str>, token: &'static str| {
            let request = server.post(path).header("idempotency-key", "k").header("authorization", token);
            answer(user.iter().fold(request, |request, user| request.header("x-user", *user)))
        };
        assert!(!post(Some("ada"), "1").await.is_replay());
        assert!(post(Some("ada"), "2").await.is_replay(), "a caller may renew its credentials");
        assert!(!post(Some("bob"), "2").await.is_replay());
        assert!(!post(None, "1").await.is_replay());
        assert_eq!(post(None, "2").await.rejection(), "other_credentials");

        let registry = Registry::builder(MemoryStore::new()).caller(|_| Some("all".to_owned())).build();
        let server = serve_callers(registry).await;
        let post = |token: &'static str| {
            answer(server.post(path).header("idempotency-key", "k").header("authorization", token))
        };
        assert!(!post("1").await.is_replay());
        assert!(post("2").await.is_replay(), "the registry names the caller");
    }
}
