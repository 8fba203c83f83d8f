//! A step without a result is logged and counted, whatever the handler does with its error.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::metrics::{self, STEP_FAILURES_TOTAL};
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Idempotency, IdempotencyLayer, Policy, Registry, StepError, StepErrorKind, idempotent};
use idempotent_tests::{Fault, FaultyStore, Logs, Runs, Server, answer};
use metrics_exporter_prometheus::PrometheusBuilder;

use crate::exposition::Exposition;

#[idempotent(scope = "steps-named-twice")]
async fn names_a_step_twice(idempotency: Idempotency) -> StatusCode {
    for _ in 0..2 {
        let _ = idempotency.step("reserve", async || Ok::<_, StepError>(1)).await;
    }
    StatusCode::OK
}

#[idempotent(scope = "steps-of-a-store-that-is-away")]
async fn loses_its_store(store: axum::Extension<FaultyStore>, idempotency: Idempotency) -> StatusCode {
    store.on_claim(Fault::Unreachable);
    let reserved = idempotency.step("reserve", async || Ok::<_, StepError>(1)).await;
    store.on_claim(Fault::None);
    reserved.map_or(StatusCode::BAD_GATEWAY, |_| StatusCode::OK)
}

#[idempotent(scope = "steps-that-may-have-run", after_crash = "reject")]
async fn drops_its_step(runs: axum::Extension<Runs>, idempotency: Idempotency) -> StatusCode {
    if runs.run().await == 1 {
        // The step is polled once and dropped, as by a timeout.
        let step = idempotency.step("reserve", async || std::future::pending::<Result<(), StepError>>().await);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(50), step).await.is_err());
        return StatusCode::BAD_GATEWAY;
    }
    let error = idempotency.step("reserve", async || Ok::<(), StepError>(())).await.expect_err("it may have run");
    assert!(matches!(error.kind(), StepErrorKind::OutcomeUnknown), "{error:?}");
    StatusCode::OK
}

fn failures(scope: &str, outcome: &str) -> Option<f64> {
    Exposition::scrape().value(STEP_FAILURES_TOTAL, &[("scope", scope), ("outcome", outcome)])
}

#[tokio::test]
async fn steps_without_a_result_are_counted_and_logged() {
    Exposition::begin();
    let (logs, store) = (Logs::collect(), FaultyStore::new());
    let app = Router::new()
        .route("/twice", post(names_a_step_twice))
        .route("/away", post(loses_its_store))
        .route("/dropped", post(drops_its_step))
        .layer(axum::Extension(store.clone()))
        .layer(axum::Extension(Runs::free()));
    let registry = Registry::builder(store).store_timeout(std::time::Duration::from_millis(100)).build();
    let server = Server::start(app.layer(registry.layer())).await;
    assert_eq!(server.post_with_key("/twice", "k").await.status, StatusCode::OK);
    assert_eq!(failures("steps-named-twice", "step_failed"), Some(1.0));
    assert_eq!(server.post_with_key("/away", "k").await.status, StatusCode::BAD_GATEWAY);
    assert_eq!(failures("steps-of-a-store-that-is-away", "store_unavailable"), Some(1.0));
    answer(server.post("/dropped").header("idempotency-key", "k")).await;
    assert_eq!(server.post_with_key("/dropped", "k").await.status, StatusCode::OK);
    assert_eq!(failures("steps-that-may-have-run", "outcome_unknown"), Some(1.0));
    let text = logs.text();
    for line in ["a step of a handler cannot be taken", "a step has no result", "the outcome of a step is unknown"] {
        let logged = text.lines().filter(|logged| logged.contains(line) && logged.contains("step=\"reserve\""));
        assert_eq!(logged.count(), 1, "{line}: {text}");
    }
}

#[test]
fn series_begin_when_a_registry_serves_routes() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let registry = Registry::new(MemoryStore::new());
    ::metrics::with_local_recorder(&recorder, || drop(registry.layer()));
    let text = recorder.handle().render();
    for name in [metrics::REQUESTS_TOTAL, STEP_FAILURES_TOTAL] {
        let series = format!("{name}{{scope=\"steps-named-twice\",outcome=\"outcome_unknown\"}} 0");
        assert!(text.lines().any(|line| line == series), "{series}: {text}");
    }
    let errors = format!("{}{{store=\"default\",op=\"claim\"}} 0", metrics::STORE_ERRORS_TOTAL);
    assert!(text.lines().any(|line| line == errors), "{errors}: {text}");
}

#[test]
fn series_of_a_layer_begin_when_its_router_is_served() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let layer = IdempotencyLayer::new(Policy::builder("series-of-a-layer").build().expect("the policy is valid"));
    ::metrics::with_local_recorder(&recorder, || {
        let app = Router::new().route("/", post(async || "done")).layer(layer);
        drop(app.into_make_service());
    });
    let text = recorder.handle().render();
    let series = format!("{}{{scope=\"series-of-a-layer\",outcome=\"outcome_unknown\"}} 0", metrics::REQUESTS_TOTAL);
    assert!(text.lines().any(|line| line == series), "{series}: {text}");
}
