//! The expressions of a policy are the handler's own code: they may wait, fail and panic, and claim nothing by it.

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

/// Another task has to run before there is an answer.
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

#[idempotent(scope = "panics", caller = user(&headers).expect("everybody has a name"))]
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
