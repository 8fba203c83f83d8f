//! The nine cases of Rustango's middleware, as policies of this library.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Redirect;
use axum::routing::{get, post};
use axum::{Form, Router};
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{IdempotencyLayer, Policy, Registry, idempotent};
use idempotent_tests::{Runs, Server, answer};
use reqwest::Method;

async fn serve(runs: &Runs) -> Server {
    let app = Router::new()
        .route("/charges", post(create_charge).get(create_charge))
        .route("/declined", post(decline))
        .route("/widened", post(decline_for_good))
        .route("/lenient", post(lenient))
        .route("/other-scope", post(in_other_scope))
        .route("/other-header", post(under_other_header))
        .route("/reads", get(create_charge))
        .with_state(runs.clone())
        .layer(Registry::new(MemoryStore::new()).layer());
    Server::start(app).await
}

#[idempotent(scope = "rustango-charges")]
async fn create_charge(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "declined")]
async fn decline(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::PAYMENT_REQUIRED, format!("declined {}", runs.run().await))
}

#[idempotent(scope = "widened", cache = ["2xx", 402])]
async fn decline_for_good(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::PAYMENT_REQUIRED, format!("declined {}", runs.run().await))
}

#[idempotent(scope = "rustango-lenient", invalid_key = "ignore")]
async fn lenient(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

#[idempotent(scope = "rustango-refunds", fingerprint = none)]
async fn in_other_scope(State(runs): State<Runs>) -> String {
    format!("refund {}", runs.run().await)
}

#[idempotent(scope = "other-header", header = "X-Request-Id")]
async fn under_other_header(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

#[tokio::test]
async fn a_request_without_the_header_passes_through() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for number in 1..=2 {
        let answer = answer(server.post("/charges")).await;
        assert_eq!(answer.text(), format!("charge {number}"));
        assert!(!answer.is_replay());
    }
}

#[tokio::test]
async fn the_same_key_replays_byte_for_byte() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    let first = server.post_with_key("/charges", "k").await;
    let second = server.post_with_key("/charges", "k").await;
    assert_eq!((first.status, first.text()), (StatusCode::CREATED, "charge 1"));
    assert_eq!((second.status, &second.body), (first.status, &first.body));
    assert!(!first.is_replay() && second.is_replay());
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn different_keys_run_apart() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    assert_eq!(server.post_with_key("/charges", "a").await.text(), "charge 1");
    assert_eq!(server.post_with_key("/charges", "b").await.text(), "charge 2");
}

#[tokio::test]
async fn a_client_error_is_not_recorded() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    assert_eq!(server.post_with_key("/declined", "k").await.text(), "declined 1");
    let second = server.post_with_key("/declined", "k").await;
    assert_eq!(second.text(), "declined 2");
    assert!(!second.is_replay());
}

#[tokio::test]
async fn get_passes_through() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for number in 1..=2 {
        let request = server.request(Method::GET, "/charges").header("idempotency-key", "k");
        assert_eq!(answer(request).await.text(), format!("charge {number}"));
    }
}

#[tokio::test]
async fn an_empty_or_oversize_key_is_rejected_by_default() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for key in [String::new(), "k".repeat(256)] {
        let answer = server.post_with_key("/charges", &key).await;
        assert_eq!((answer.status, answer.rejection().as_str()), (StatusCode::BAD_REQUEST, "invalid_key"));
    }
    assert_eq!(runs.started(), 0);
}

#[tokio::test]
async fn an_empty_or_oversize_key_passes_through_on_request() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for key in [String::new(), "k".repeat(256)] {
        for _ in 0..2 {
            let answer = server.post_with_key("/lenient", &key).await;
            assert_eq!(answer.status, StatusCode::OK);
            assert!(!answer.is_replay());
        }
    }
    assert_eq!(runs.started(), 4);
}

#[tokio::test]
async fn scopes_do_not_collide_in_one_store() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    assert_eq!(server.post_with_key("/charges", "k").await.text(), "charge 1");
    assert_eq!(server.post_with_key("/other-scope", "k").await.text(), "refund 2");
    assert_eq!(server.post_with_key("/charges", "k").await.text(), "charge 1");
    assert_eq!(server.post_with_key("/other-scope", "k").await.text(), "refund 2");
}

#[tokio::test]
async fn a_widened_status_list_records_more() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    let first = server.post_with_key("/widened", "k").await;
    let second = server.post_with_key("/widened", "k").await;
    assert_eq!((second.status, second.text()), (StatusCode::PAYMENT_REQUIRED, first.text()));
    assert!(second.is_replay());
}

#[tokio::test]
async fn a_custom_header_carries_the_key() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for _ in 0..2 {
        let request = server.post("/other-header").header("x-request-id", "k").header("idempotency-key", "ignored");
        assert_eq!(answer(request).await.text(), "charge 1");
    }
    assert_eq!(server.post_with_key("/other-header", "k").await.text(), "charge 2");
}

#[idempotent(scope = "forms")]
async fn submit_form(State(runs): State<Runs>, _form: Form<Vec<(String, String)>>) -> Redirect {
    Redirect::to(&format!("/charges/{}", runs.run().await))
}

/// Other redirects say that nothing was done here.
#[idempotent(scope = "moved")]
async fn has_moved(State(runs): State<Runs>) -> Redirect {
    runs.run().await;
    Redirect::temporary("/elsewhere")
}

/// Rustango records only 2xx, so a form that is sent twice is executed twice.
#[tokio::test]
async fn form_answered_with_303_runs_once_and_replays_location() {
    let runs = Runs::free();
    let layered = post(async |State(runs): State<Runs>| Redirect::to(&format!("/charges/{}", runs.run().await)));
    let policy = Policy::builder("layered-forms").build().expect("the policy is valid");
    let app = Router::new()
        .route("/form", post(submit_form))
        .route("/layered", layered.layer(IdempotencyLayer::new(policy)))
        .route("/moved", post(has_moved))
        .with_state(runs.clone())
        .layer(Registry::new(MemoryStore::new()).layer());
    let server = Server::start(app).await;
    // Like a browser, except that it does not follow the redirect.
    let browser = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().expect("a client");
    let submit = async |path: &str| {
        let request = browser.post(format!("http://{}{path}", server.address())).form(&[("amount", "5")]);
        answer(request.header("idempotency-key", "k")).await
    };
    for (run, path) in [(1, "/form"), (2, "/layered")] {
        for is_replay in [false, true, true] {
            let answer = submit(path).await;
            assert_eq!((answer.status, answer.is_replay()), (StatusCode::SEE_OTHER, is_replay), "{path}");
            assert_eq!(answer.headers["location"], format!("/charges/{run}"));
        }
    }
    assert_eq!(runs.started(), 2);
    for _ in 1..=2 {
        let answer = submit("/moved").await;
        assert_eq!((answer.status, answer.is_replay()), (StatusCode::TEMPORARY_REDIRECT, false));
    }
    assert_eq!(runs.started(), 4);
}
