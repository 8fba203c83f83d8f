//! Steps that an operator resolves.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use http::StatusCode;
use idempotent_runtime::operate::Finding;
use idempotent_runtime::store::{AfterCrash, Entry, MemoryStore, Resolved, StoreAdmin};
use idempotent_runtime::{Idempotency, IdempotencyLayer, Policy, RecordKey, Registry};
use idempotent_tests::{Runs, Server};
use tower_http::catch_panic::CatchPanicLayer;

/// Its first step is cut off.
async fn order(State(runs): State<Runs>, idempotency: Idempotency) -> Result<String, Response> {
    let reserve = || async {
        let run = runs.run().await;
        assert!(run > 1, "the step is cut off");
        Ok::<_, Response>(run)
    };
    let reservation = idempotency.step("reserve", reserve).await?;
    Ok(format!("reservation {reservation}"))
}

async fn look(store: &MemoryStore, key: &RecordKey) -> Entry {
    store.get(key).await.expect("the store answers").expect("the entry is there")
}

/// The claim belongs to the layer, and the step belongs to the inner handler.
#[tokio::test]
async fn resolved_step_beneath_a_layer_is_not_run() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let registry = Registry::new(store.clone());
    let policy = Policy::builder("resolved-orders").after_crash(AfterCrash::Reject).build().expect("a valid policy");
    let layer = IdempotencyLayer::new(policy).with_registry(registry.clone());
    let app = Router::new().route("/orders", post(order)).with_state(runs.clone());
    let server = Server::start(app.layer(layer).layer(CatchPanicLayer::new())).await;
    assert_eq!(server.post_with_key("/orders", "k").await.status, StatusCode::INTERNAL_SERVER_ERROR);

    let key = RecordKey::new("resolved-orders", None, "k");
    let reserved = Finding::executed(http::Response::new("17"), "the warehouse has reservation 17");
    let not_executed = Finding::not_executed("nothing else was done");
    for (key, finding) in [(key.step("reserve"), reserved), (key, not_executed)] {
        let resolved = registry.resolve(None, &look(&store, &key).await, &finding).await;
        assert_eq!(resolved.expect("it is resolved"), Resolved::Yes);
    }
    let answer = server.post_with_key("/orders", "k").await;
    assert_eq!((answer.text(), runs.started()), ("reservation 17", 1));
}
