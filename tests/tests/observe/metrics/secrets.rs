//! No label contains data of a request.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent, metrics};
use idempotent_tests::{Runs, Server, answer, eventually};

use crate::exposition::Exposition;

#[idempotent(scope = "secrets", required, caller = headers["x-caller"].to_str().unwrap_or("planted"))]
async fn create_charge(headers: HeaderMap, State(runs): State<Runs>, body: String) -> (StatusCode, String) {
    drop(headers);
    let status = if body.contains("fail") { StatusCode::BAD_GATEWAY } else { StatusCode::CREATED };
    (status, format!("planted-response {}", runs.run().await))
}

#[tokio::test]
async fn hostile_keys_callers_and_bodies_reach_no_label() {
    Exposition::begin();
    let registry = Registry::new(MemoryStore::new());
    let app = Router::new().route("/charges/{id}", post(create_charge)).with_state(Runs::free());
    let server = Server::start(app.layer(registry.layer())).await;
    let long = "planted".repeat(36);
    let keys = [
        "planted-bare",
        r#""planted \"quoted\\""#,
        r#""planted} 1 # {""#,
        r#""scope=planted,outcome=planted""#,
        "planted{scope=planted}",
        "planted,malformed",
        "idempotency_planted_total",
        long.as_str(),
    ];
    for key in keys {
        for (id, body) in [("planted-path", "planted-body"), ("planted-path", "other"), ("planted-fail", "fail")] {
            let request = server.post(&format!("/charges/{id}?planted-query")).header("idempotency-key", key);
            let request = request.header("x-caller", "planted-caller").header("authorization", "Bearer planted");
            answer(request.body(body)).await;
        }
    }
    // The stores are queried in the background, and not by the requests.
    let counted = async || {
        metrics::refresh();
        Exposition::scrape().value(metrics::UNKNOWN_OUTCOMES, &[("scope", "secrets")])
    };
    eventually(counted, Option::is_some).await;
    let exposition = Exposition::scrape();
    assert!(!exposition.text().contains("planted"), "{}", exposition.text());
    assert!(exposition.value("idempotency_requests_total", &[("scope", "secrets")]).is_some_and(|count| count >= 24.0));
    let is_of_secrets = |label: Option<&String>| label.is_some_and(|scope| scope == "secrets");
    let series = exposition.samples().iter().filter(|sample| is_of_secrets(sample.labels.get("scope"))).count();
    assert_eq!(
        series,
        22 + 3 + 7 + 5,
        "one for each outcome, for each part that can differ, for each outcome of a step, and for each of the others"
    );
}
