//! Forwarded requests: a handler sends parts of its request through its own router.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{IdempotencyLayer, Policy, Registry, idempotent};
use idempotent_tests::{PATIENCE, Server, answer};
use tokio::sync::Notify;
use tokio::time::timeout;
use tower::ServiceExt;

#[idempotent(scope = "identity-accounts", shared_scope, required)]
async fn charge_account(Path(id): Path<u32>) -> String {
    format!("account {id} charged")
}

/// Charges two accounts through an inner router, as a batch endpoint does.
async fn batch(State(nested): State<bool>, request: Request) -> String {
    let wallets = request.uri().path() == "/wallets";
    let accounts = Router::new().route("/{id}/charge", post(charge_account));
    let inner = if nested {
        let wallet = Router::new().route("/charge", post(charge_account));
        Router::new().nest("/accounts", accounts.clone()).nest("/others", accounts).nest("/wallets/{id}", wallet)
    } else {
        Router::new().route("/accounts/{id}/charge", post(charge_account)).route("/", post(charge_account_zero))
    };
    let (parts, _) = request.into_parts();
    let mut answers = Vec::new();
    let targets = ["/accounts/1/charge", "/accounts/2/charge", "/others/1/charge", "/wallets/1/charge"];
    let targets = if wallets { ["/wallets/1/charge", "/wallets/2/charge"].to_vec() } else { targets.to_vec() };
    for target in targets {
        let mut part: Parts = parts.clone();
        part.uri = Uri::from_static(target);
        let response = inner.clone().oneshot(Request::from_parts(part, Body::empty())).await.expect("a router answers");
        answers.push(text(response).await);
    }
    answers.join(" | ")
}

#[idempotent(scope = "identity-accounts", shared_scope, required)]
async fn charge_account_zero() -> &'static str {
    "account 0 charged"
}

async fn text(response: Response) -> String {
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("the body arrives");
    format!("{} {}", status.as_u16(), String::from_utf8_lossy(&body))
}

#[tokio::test]
async fn a_forwarded_request_is_known_by_the_uri_that_was_routed() {
    for nested in [false, true] {
        let app = Router::new().route("/batch", post(batch)).route("/wallets", post(batch)).with_state(nested);
        let server = Server::start(app.layer(Registry::new(MemoryStore::new()).layer())).await;
        let answers = server.post_with_key("/batch", "k").await.text().to_owned();
        let answers: Vec<&str> = answers.split(" | ").collect();
        assert_eq!(answers[0], "200 account 1 charged");
        assert!(answers[1].starts_with("422 ") && answers[1].contains("key_reused"), "{}", answers[1]);
        assert!(answers[2].starts_with(if nested { "422 " } else { "404 " }), "{}", answers[2]);
        if nested {
            let wallets = answer(server.post("/wallets").header("idempotency-key", "w")).await.text().to_owned();
            let (first, second) = wallets.split_once(" | ").expect("two answers");
            assert_eq!(first, "200 account 1 charged");
            assert!(second.starts_with("422 ") && second.contains("key_reused"), "{second}");
        }
    }
}

/// The route of one account, under a prefix that is stripped.
async fn charge_in_nest(Path(account): Path<String>) -> String {
    format!("account {account} charged")
}

/// Forwards one request to two accounts, as a batch does.
async fn forward_to_both(request: Request) -> String {
    let layer = IdempotencyLayer::new(Policy::builder("identity-nested").build().expect("the policy is valid"));
    let accounts = Router::new().route("/", post(charge_in_nest)).route("/charge", post(charge_in_nest)).layer(layer);
    let inner: Router = Router::new().nest("/accounts/{account}", accounts);
    let (parts, _) = request.into_parts();
    let suffix = if parts.uri.path() == "/batch" { "" } else { "/charge" };
    let mut answers = Vec::new();
    for account in ["1", "2"] {
        let mut parts = parts.clone();
        parts.uri = format!("/accounts/{account}{suffix}").parse().expect("a path");
        let answer = inner.clone().oneshot(Request::from_parts(parts, Body::empty())).await.expect("infallible");
        answers.push(answer.headers().contains_key("idempotent-replayed").to_string());
    }
    answers.join(" ")
}

#[tokio::test]
async fn a_forwarded_request_is_known_by_the_prefix_that_was_stripped() {
    let app = Router::new().route("/batch", post(forward_to_both)).route("/batch/charge", post(forward_to_both));
    let server = Server::start(app.layer(Registry::new(MemoryStore::new()).layer())).await;
    for path in ["/batch", "/batch/charge"] {
        assert_eq!(server.post_with_key(path, path).await.text(), "false false", "{path}");
    }
}

/// A handler that runs until it is let go.
#[derive(Clone, Default)]
struct Held {
    runs: Arc<AtomicUsize>,
    begun: Arc<Notify>,
    let_go: Arc<Notify>,
}

#[idempotent(scope = "forwarded-held")]
async fn held(State(held): State<Held>, _body: String) {
    held.runs.fetch_add(1, Ordering::SeqCst);
    held.begun.notify_one();
    held.let_go.notified().await;
}

/// The function gets the head of a request before the guard has passed the request on.
#[tokio::test]
async fn copy_that_the_caller_function_kept_is_a_duplicate() {
    let (state, kept) = (Held::default(), Arc::<Mutex<Vec<Parts>>>::default());
    let keeping = Arc::clone(&kept);
    let registry = Registry::builder(MemoryStore::new()).caller(move |parts| {
        keeping.lock().expect("nothing panics").push(parts.clone());
        Some("alice".to_owned())
    });
    let app = Router::new().route("/", post(held)).with_state(state.clone()).layer(registry.build().layer());
    let request = Request::post("/").header("idempotency-key", "k").body(Body::empty()).expect("it is well-formed");
    let first = tokio::spawn(app.clone().oneshot(request));
    state.begun.notified().await;
    let copy = kept.lock().expect("nothing panics").pop().expect("the function was called");
    let second =
        timeout(PATIENCE, app.oneshot(Request::from_parts(copy, Body::empty()))).await.expect("it is answered");
    assert_eq!(second.expect("a router answers").status(), StatusCode::CONFLICT);
    state.let_go.notify_one();
    assert_eq!(first.await.expect("it ends").expect("a router answers").status(), StatusCode::OK);
    assert_eq!(state.runs.load(Ordering::SeqCst), 1);
}
