//! The rejection of a step is not a response of the handler: it is never recorded, even if other code makes a response
//! of it.

use std::future::pending;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use idempotent_runtime::store::{MemoryStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Idempotency, IdempotencyLayer, Policy, RecordKey, Registry, StepError, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Fault, FaultyStore, Runs, Server, answer, take_over};
use sqlx::Sqlite;
use tokio::sync::Notify;

/// The store is unavailable for the first step, and available for the second attempt.
#[derive(Clone)]
struct Away {
    store: FaultyStore,
    runs: Runs,
}

impl Away {
    async fn charge(&self, idempotency: &Idempotency) -> Result<String, StepError> {
        let is_first = self.runs.run().await == 1;
        self.store.on_claim(if is_first { Fault::Unreachable } else { Fault::None });
        let charged = idempotency.step("charge", async || Ok::<_, StepError>("charged".to_owned())).await;
        self.store.on_claim(Fault::None);
        charged
    }
}

#[idempotent(scope = "rejected-response", cache = all)]
async fn as_response(State(away): State<Away>, idempotency: Idempotency) -> Result<String, Response> {
    Ok(away.charge(&idempotency).await?)
}

#[idempotent(scope = "rejected-status", cache = all)]
async fn as_status(State(away): State<Away>, idempotency: Idempotency) -> Result<String, StatusCode> {
    Ok(away.charge(&idempotency).await?)
}

#[idempotent(scope = "rejected-text", cache = all)]
async fn as_text(State(away): State<Away>, idempotency: Idempotency) -> Response {
    match away.charge(&idempotency).await {
        Ok(charged) => charged.into_response(),
        Err(error) => (error.rejection().status(), error.to_string()).into_response(),
    }
}

async fn plain(State(away): State<Away>, idempotency: Idempotency) -> Result<String, StatusCode> {
    Ok(away.charge(&idempotency).await?)
}

/// A middleware that gives each tenant its own keys.
async fn rewrite_key(mut request: Request, next: Next) -> Response {
    request.headers_mut().insert("idempotency-key", HeaderValue::from_static("another"));
    next.run(request).await
}

#[tokio::test]
async fn rejection_of_a_step_is_never_recorded() {
    let routes: [fn() -> MethodRouter<Away>; 5] =
        [|| post(as_response), || post(as_status), || post(as_text), || post(plain), || post(as_status)];
    for is_rendered in [false, true] {
        for (number, route) in routes.iter().enumerate() {
            let away = Away { store: FaultyStore::new(), runs: Runs::free() };
            let mut registry = Registry::builder(away.store.clone()).store_timeout(Duration::from_millis(50));
            if is_rendered {
                registry = registry.render_rejections(|_, _| StatusCode::BAD_GATEWAY.into_response());
            }
            let registry = registry.build();
            let policy = Policy::builder("rejected-layer").cache_all().build().expect("a valid policy");
            let mut app = Router::new().route("/", route()).with_state(away.clone()).layer(registry.layer());
            if number == 4 {
                app = app.layer(from_fn(rewrite_key));
            }
            if number >= 3 {
                app = app.layer(IdempotencyLayer::new(policy).with_registry(registry));
            }
            let server = Server::start(app).await;
            let first = server.post_with_key("/", "k").await.status;
            assert!(first.is_server_error(), "{number} {is_rendered}: {first}");
            for is_replay in [false, true] {
                let answer = server.post_with_key("/", "k").await;
                assert_eq!((answer.text(), answer.is_replay()), ("charged", is_replay), "{number} {is_rendered}");
            }
        }
    }
}

/// The step of the first attempt is dropped, so its outcome is unknown.
async fn unknown_step(runs: &Runs, idempotency: &Idempotency) -> Result<(), StepError> {
    if runs.run().await > 1 {
        return idempotency.step("charge", async || Ok(())).await;
    }
    let begun = Notify::new();
    let step = idempotency.step("charge", async || {
        begun.notify_one();
        pending::<Result<(), StepError>>().await
    });
    tokio::select! {
        ended = step => ended,
        () = begun.notified() => Ok(()),
    }
}

#[idempotent(scope = "rejected-unknown", cache = [201, 409], after_crash = "reject")]
async fn unknown_as_response(State((runs, _)): State<Rejected>, idempotency: Idempotency) -> Result<(), Response> {
    Ok(unknown_step(&runs, &idempotency).await?)
}

#[idempotent(scope = "rejected-unknown-status", cache = [201, 409], after_crash = "reject")]
async fn unknown_as_status(State((runs, _)): State<Rejected>, idempotency: Idempotency) -> Result<(), StatusCode> {
    Ok(unknown_step(&runs, &idempotency).await?)
}

type Rejected = (Runs, MemoryStore);

#[tokio::test]
async fn unknown_outcome_of_a_step_is_never_recorded() {
    for route in [post(unknown_as_response), post(unknown_as_status)] {
        let rejected = (Runs::free(), MemoryStore::new());
        let registry = Registry::new(rejected.1.clone());
        let app = Router::new().route("/", route).with_state(rejected.clone()).layer(registry.layer());
        let server = Server::start(app).await;
        assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::OK, "a status that is not recorded");
        for attempt in [2, 3] {
            let answer = server.post_with_key("/", "k").await;
            assert_eq!((answer.status, answer.is_replay()), (StatusCode::CONFLICT, false));
            assert_eq!(rejected.0.started(), attempt);
        }
    }
}

/// While the first attempt runs its step, another request takes the step's claim. The handler's claim remains.
async fn lost_step((runs, store): &Rejected, scope: &str, idempotency: &Idempotency) -> Result<StatusCode, StepError> {
    let is_first = runs.run().await == 1;
    let step = RecordKey::new(scope, None, "k").step("charge");
    let charge = async || {
        if is_first {
            take_over(store, &step).await;
        }
        Ok::<_, StepError>(())
    };
    idempotency.step("charge", charge).await.map(|()| StatusCode::CREATED)
}

#[idempotent(scope = "rejected-lost", cache = [201, 409])]
async fn lost_as_response(State(state): State<Rejected>, idempotency: Idempotency) -> Result<StatusCode, Response> {
    Ok(lost_step(&state, "rejected-lost", &idempotency).await?)
}

#[idempotent(scope = "rejected-lost-status", cache = [201, 409])]
async fn lost_as_status(State(state): State<Rejected>, idempotency: Idempotency) -> Result<StatusCode, StatusCode> {
    Ok(lost_step(&state, "rejected-lost-status", &idempotency).await?)
}

#[tokio::test]
async fn lost_claim_of_a_step_is_never_recorded() {
    for (scope, route) in [("rejected-lost", post(lost_as_response)), ("rejected-lost-status", post(lost_as_status))] {
        let rejected = (Runs::free(), MemoryStore::new());
        let registry = Registry::new(rejected.1.clone());
        let app = Router::new().route("/", route).with_state(rejected.clone()).layer(registry.layer());
        let server = Server::start(app).await;
        assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::CONFLICT);
        let step = RecordKey::new(scope, None, "k").step("charge");
        assert!(rejected.1.purge(&step).await.expect("the store answers"));
        for is_replay in [false, true] {
            let answer = server.post_with_key("/", "k").await;
            assert_eq!((answer.status, answer.is_replay()), (StatusCode::CREATED, is_replay));
        }
        assert_eq!(rejected.0.started(), 2);
    }
}

#[idempotent(scope = "rejected-tx", cache = all)]
async fn in_tx(State(runs): State<Runs>, mut tx: Tx<Sqlite>, idempotency: Idempotency) -> Result<String, Response> {
    sqlx::query("INSERT INTO charges (id) VALUES ('charge')").execute(&mut *tx).await.expect("it is inserted");
    if runs.run().await == 1 {
        idempotency.step("charge", async || Ok::<_, Response>(())).await?;
    }
    Ok("done".to_owned())
}

#[tokio::test]
async fn rejection_of_a_step_is_not_committed() {
    for has_key in [true, false] {
        let (file, runs) = (SqliteFile::new(), Runs::free());
        file.execute("CREATE TABLE charges (id TEXT)").await;
        let store = SqliteStore::open(file.path()).await.expect("the file opens");
        let app = Router::new().route("/", post(in_tx)).with_state(runs.clone());
        let server = Server::start(app.layer(Registry::new(store).layer())).await;
        let send = || {
            let request = server.post("/");
            answer(if has_key { request.header("idempotency-key", "k") } else { request })
        };
        assert_eq!(send().await.rejection(), "step_failed");
        assert_eq!((send().await.text(), runs.started()), ("done", 2));
        assert_eq!(file.number("SELECT count(*) FROM charges").await, 1, "{has_key}");
    }
}

/// Answers with its own response, although a step has failed.
#[idempotent(scope = "rejected-handled", cache = [200, 409])]
async fn handles_it(State(away): State<Away>, idempotency: Idempotency) -> (StatusCode, &'static str) {
    match away.charge(&idempotency).await {
        Ok(_) => (StatusCode::OK, "charged"),
        Err(_) => (StatusCode::CONFLICT, "out of stock"),
    }
}

#[tokio::test]
async fn response_of_another_status_after_a_rejected_step_is_recorded() {
    let away = Away { store: FaultyStore::new(), runs: Runs::free() };
    let registry = Registry::builder(away.store.clone()).store_timeout(Duration::from_millis(50)).build();
    let app = Router::new().route("/", post(handles_it)).with_state(away.clone()).layer(registry.layer());
    let server = Server::start(app).await;
    for is_replay in [false, true] {
        let answer = server.post_with_key("/", "k").await;
        assert_eq!((answer.status, answer.is_replay()), (StatusCode::CONFLICT, is_replay));
    }
}
