//! What handlers inside of an `IdempotencyLayer` can and cannot do: steps, and their own transactions.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use idempotent_runtime::store::{MemoryStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Idempotency, IdempotencyLayer, Policy, RecordKey, Registry, Tx, idempotent};
use idempotent_tests::{Logs, Runs, Server};
use sqlx::Sqlite;

fn layer(scope: &str, registry: &Registry) -> IdempotencyLayer {
    let policy = Policy::builder(scope).build().expect("the policy is valid");
    IdempotencyLayer::new(policy).with_registry(registry.clone())
}

/// The first answer is not recorded, so a retry runs the handler again.
async fn take_a_step(reservations: Runs, answers: Runs, idempotency: Idempotency) -> Result<String, Response> {
    let number = idempotency.step("reserve", || async { Ok::<_, Response>(reservations.run().await) }).await?;
    match answers.run().await {
        1 => Err(Response::builder().status(StatusCode::BAD_GATEWAY).body("".into()).expect("a response")),
        _ => Ok(format!("reservation {number}")),
    }
}

type BothRuns = State<(Runs, Runs)>;

async fn plain(State((reservations, answers)): BothRuns, idempotency: Idempotency) -> Result<String, Response> {
    take_a_step(reservations, answers, idempotency).await
}

#[idempotent(scope = "annotated")]
async fn annotated(State((reservations, answers)): BothRuns, idempotency: Idempotency) -> Result<String, Response> {
    take_a_step(reservations, answers, idempotency).await
}

#[idempotent(scope = "api", shared_scope)]
async fn of_the_layers_scope(
    State((reservations, answers)): BothRuns,
    idempotency: Idempotency,
) -> Result<String, Response> {
    take_a_step(reservations, answers, idempotency).await
}

/// A step belongs to the claim whose key the handler sees: its own claim, or that of the nearest layer.
#[tokio::test]
async fn step_is_recorded_under_the_claim_of_its_handler() {
    for (path, scope) in [("/plain", "api"), ("/annotated", "annotated"), ("/same", "api")] {
        let (reservations, answers, store) = (Runs::free(), Runs::free(), MemoryStore::new());
        let registry = Registry::new(store.clone());
        let app = Router::new()
            .route("/plain", post(plain))
            .route("/annotated", post(annotated))
            .route("/same", post(of_the_layers_scope))
            .with_state((reservations.clone(), answers.clone()))
            .layer(registry.layer())
            .layer(layer("api", &registry))
            .layer(layer("outer", &registry));
        let server = Server::start(app).await;
        assert_eq!(server.post_with_key(path, "k").await.status, StatusCode::BAD_GATEWAY);
        let step = RecordKey::new(scope, None, "k").step("reserve");
        assert!(store.get(&step).await.expect("the store answers").is_some(), "{path}");
        for is_replay in [false, true] {
            let answer = server.post_with_key(path, "k").await;
            assert_eq!((answer.text(), answer.is_replay()), ("reservation 1", is_replay), "{path}");
        }
        assert_eq!((reservations.started(), answers.started(), store.len()), (1, 2, 2), "{path}");
    }
}

#[idempotent(scope = "api", shared_scope)]
async fn in_a_transaction_of_the_layers_scope(State(runs): State<Runs>, _tx: Tx<Sqlite>) -> String {
    format!("charge {}", runs.run().await)
}

#[idempotent(scope = "transactions")]
async fn in_a_transaction(State(runs): State<Runs>, _tx: Tx<Sqlite>) -> String {
    format!("charge {}", runs.run().await)
}

/// The record of the transaction would have to commit under a key that the layer holds.
#[tokio::test]
async fn a_transaction_needs_a_scope_of_its_own() {
    for scopes in [vec!["api"], vec!["api", "b"], vec!["api", "api"], vec!["b", "api", "b"]] {
        let (logs, runs) = (Logs::collect(), Runs::free());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = SqliteStore::open(folder.path().join("records.db")).await.expect("the store opens");
        let registry = Registry::new(store);
        let mut app = Router::new()
            .route("/same", post(in_a_transaction_of_the_layers_scope))
            .route("/own", post(in_a_transaction))
            .with_state(runs.clone())
            .layer(registry.layer());
        for scope in scopes.iter().rev() {
            // This policy would record the rejection if rejections were recorded.
            let policy = Policy::builder(*scope).cache_all().build().expect("the policy is valid");
            app = app.layer(IdempotencyLayer::new(policy).with_registry(registry.clone()));
        }
        let server = Server::start(app).await;
        for _ in 1..=2 {
            let rejected = server.post_with_key("/same", "a").await;
            assert_eq!(
                (rejected.status, rejected.rejection().as_str(), rejected.is_replay()),
                (StatusCode::INTERNAL_SERVER_ERROR, "transaction_failed", false),
                "{scopes:?}"
            );
        }
        assert_eq!(runs.started(), 0, "{scopes:?}");
        let errors = logs.of_level("ERROR");
        assert!(errors.iter().any(|line| line.contains("give each its own scope")), "{errors:?}");

        for is_replay in [false, true] {
            let answer = server.post_with_key("/own", "b").await;
            assert_eq!((answer.text(), answer.is_replay()), ("charge 1", is_replay), "{scopes:?}");
        }
    }
}

/// The scopes of the guards of one key, from the outermost to the innermost. The path says whether the handler itself
/// has a guard.
#[tokio::test]
async fn guards_of_one_scope_around_another_run_the_handler_once() {
    let chains = [
        (vec!["api"], "/same"),
        (vec!["api", "b"], "/same"),
        (vec!["api", "b", "c"], "/same"),
        (vec!["api", "b", "api"], "/same"),
        (vec!["api", "api"], "/same"),
        (vec!["b", "api"], "/same"),
        (vec!["b", "api", "b"], "/same"),
        (vec!["api", "annotated", "api"], "/annotated"),
        (vec!["api", "api"], "/plain"),
        (vec!["api", "b", "api"], "/plain"),
        (vec!["api", "b", "b", "api"], "/plain"),
    ];
    for (scopes, path) in chains {
        let (reservations, answers, store) = (Runs::free(), Runs::free(), MemoryStore::new());
        // Makes the first answer a recorded one.
        answers.run().await;
        let registry = Registry::new(store.clone());
        let mut app = Router::new()
            .route("/plain", post(plain))
            .route("/annotated", post(annotated))
            .route("/same", post(of_the_layers_scope))
            .with_state((reservations.clone(), answers.clone()))
            .layer(registry.layer());
        for scope in scopes.iter().rev() {
            app = app.layer(layer(scope, &registry));
        }
        let server = Server::start(app).await;
        for is_replay in [false, true, true] {
            let answer = server.post_with_key(path, "k").await;
            assert_eq!((answer.text(), answer.is_replay()), ("reservation 1", is_replay), "{scopes:?} {path}");
        }
        assert_eq!(reservations.started(), 1, "{scopes:?} {path}");
    }
}

/// The handler runs under the outermost claim. No guard in between may leave that claim without a record.
#[tokio::test]
async fn the_outermost_guard_of_a_key_records_what_ran_under_it() {
    let (reservations, answers, store) = (Runs::free(), Runs::free(), MemoryStore::new());
    answers.run().await;
    let registry = Registry::new(store.clone());
    let records_no_success = Policy::builder("b").cache([402]).build().expect("the policy is valid");
    let app = Router::new()
        .route("/same", post(of_the_layers_scope))
        .with_state((reservations.clone(), answers))
        .layer(registry.layer())
        .layer(IdempotencyLayer::new(records_no_success).with_registry(registry.clone()))
        .layer(layer("api", &registry));
    let server = Server::start(app).await;
    for is_replay in [false, true] {
        let answer = server.post_with_key("/same", "k").await;
        assert_eq!((answer.text(), answer.is_replay()), ("reservation 1", is_replay));
    }
    assert_eq!(reservations.started(), 1);
    for key in [RecordKey::new("api", None, "k"), RecordKey::new("api", None, "k").step("reserve")] {
        assert!(store.get(&key).await.expect("the store answers").is_some(), "{key:?}");
    }
    assert!(store.get(&RecordKey::new("b", None, "k")).await.expect("the store answers").is_none());
}
