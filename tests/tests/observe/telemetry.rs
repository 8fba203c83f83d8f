//! One span per guarded request, with its scope and its outcome, and no secrets.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{Logs, Runs, Server, answer};

use crate::exposition::Exposition;

#[idempotent(scope = "charges", required)]
async fn create_charge(State(runs): State<Runs>, body: String) -> (StatusCode, String) {
    tracing::info!("inside the handler");
    let run = runs.run().await;
    match body.as_str() {
        "fail" => (StatusCode::BAD_GATEWAY, String::new()),
        "large" => (StatusCode::OK, "x".repeat(5 * 1024 * 1024)),
        _ => (StatusCode::CREATED, format!("charge {run}")),
    }
}

fn outcomes(logs: &Logs) -> Vec<String> {
    let closed = logs.text();
    closed
        .lines()
        .filter(|line| line.contains("idempotent{") && line.contains(" close "))
        .map(|line| {
            assert!(line.contains("idempotency.scope=\"charges\""), "{line}");
            let (_, outcome) = line.split_once("idempotency.outcome=\"").expect("the outcome is recorded");
            outcome.split('"').next().unwrap_or_default().to_owned()
        })
        .collect()
}

#[tokio::test]
async fn every_guarded_request_has_one_span_with_scope_and_outcome() {
    Exposition::begin();
    let logs = Logs::collect();
    let runs = Runs::held();
    let app = Router::new()
        .route("/charges", post(create_charge))
        .with_state(runs.clone())
        .layer(Registry::new(MemoryStore::new()).layer());
    let server = Server::start(app).await;
    let send = |key: &'static str, body: &'static str| {
        answer(
            server
                .post("/charges")
                .header("idempotency-key", key)
                .header("authorization", "Bearer planted-credential")
                .body(body),
        )
    };
    let first = tokio::spawn(send("planted-key-1", "planted-body"));
    runs.until_started(1).await;
    send("planted-key-1", "planted-body").await;
    runs.let_finish(3);
    first.await.expect("the request runs");
    send("planted-key-1", "planted-body").await;
    send("planted-key-1", "other").await;
    send("planted-key-2", "fail").await;
    send("planted-key-3", "large").await;
    send("planted-key-3", "large").await;
    send("planted,key", "").await;
    answer(server.post("/charges")).await;
    assert_eq!(
        outcomes(&logs),
        [
            "in_flight",
            "recorded",
            "replayed",
            "key_reused",
            "not_recorded",
            "too_large",
            "response_not_recorded",
            "invalid_key",
            "missing_key",
        ]
    );
    let lines = logs.of_level("INFO");
    let mismatch = lines.iter().find(|line| line.contains("a key was used for another request")).expect("it is logged");
    assert!(mismatch.contains("differs=\"body\"") && !mismatch.contains("header="), "{mismatch}");
    assert!(
        logs.text().lines().any(|line| line.contains("idempotent{") && line.contains("inside the handler")),
        "the handler runs inside the span"
    );
    let text = logs.text();
    for secret in ["planted-key", "planted,key", "planted-body", "planted-credential"] {
        let ours: Vec<_> =
            text.lines().filter(|line| line.contains("idempotent")).filter(|line| line.contains(secret)).collect();
        assert!(ours.is_empty(), "{secret} in {ours:?}");
    }
}
