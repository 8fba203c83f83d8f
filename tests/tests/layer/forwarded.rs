//! Requests that a service inside of an `IdempotencyLayer` forwards, and what was extracted from them before they
//! reached the layer.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::post;
use idempotent_runtime::store::{MemoryStore, StoreAdmin};
use idempotent_runtime::{Idempotency, IdempotencyLayer, Policy, PolicyBuilder, RecordKey, Registry, Tx, idempotent};
use idempotent_tests::{Runs, Server, answer, lock};
use sqlx::Sqlite;
use tower::ServiceExt;

fn layer(policy: PolicyBuilder, store: &MemoryStore) -> IdempotencyLayer {
    let policy = policy.build().expect("the policy is valid");
    IdempotencyLayer::new(policy).with_registry(Registry::new(store.clone()))
}

/// How often each of two handlers has run.
#[derive(Clone)]
struct Both {
    outer: Runs,
    inner: Runs,
}

impl Both {
    fn free() -> Self {
        Self { outer: Runs::free(), inner: Runs::free() }
    }

    fn started(&self) -> (usize, usize) {
        (self.outer.started(), self.inner.started())
    }
}

#[idempotent(scope = "inner")]
async fn inner(State(runs): State<Both>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("inner {}", runs.inner.run().await))
}

async fn pass_on(runs: &Both, request: Request) -> Response {
    let router: Router = Router::new().fallback(inner).with_state(runs.clone());
    router.oneshot(request).await.expect("a router answers")
}

/// Does its work, calls another handler, and answers for both.
async fn answers_itself(State(runs): State<Both>, request: Request) -> (StatusCode, String) {
    let run = runs.outer.run().await;
    let passed_on = pass_on(&runs, request).await;
    assert_eq!(passed_on.status(), StatusCode::CREATED);
    (StatusCode::CREATED, format!("outer {run}"))
}

/// Has no effect of its own, like a middleware, and returns the response of the other handler.
async fn hands_on(State(runs): State<Both>, request: Request) -> Response {
    runs.outer.run().await;
    pass_on(&runs, request).await
}

async fn serve(runs: &Both, store: &MemoryStore) -> Server {
    let app = Router::new()
        .route("/answers-itself", post(answers_itself))
        .route("/hands-on", post(hands_on))
        .with_state(runs.clone())
        .layer(Registry::new(store.clone()).layer())
        .layer(layer(Policy::builder("api"), store));
    Server::start(app).await
}

#[tokio::test]
async fn a_handler_that_answers_for_itself_is_recorded_by_the_layer() {
    let (runs, store) = (Both::free(), MemoryStore::new());
    let server = serve(&runs, &store).await;
    for is_replay in [false, true, true] {
        let answer = server.post_with_key("/answers-itself", "k").await;
        assert_eq!((answer.text(), answer.is_replay()), ("outer 1", is_replay));
    }
    assert_eq!((runs.started(), store.len()), ((1, 1), 2));
}

#[tokio::test]
async fn handler_that_hands_on_a_guarded_response_is_a_middleware() {
    let (runs, store) = (Both::free(), MemoryStore::new());
    let server = serve(&runs, &store).await;
    for is_replay in [false, true] {
        let answer = server.post_with_key("/hands-on", "k").await;
        assert_eq!((answer.text(), answer.is_replay()), ("inner 1", is_replay));
    }
    assert_eq!((runs.started(), store.len()), ((2, 1), 1));
}

#[idempotent(scope = "alias")]
async fn alias(State((runs, store)): State<(Both, MemoryStore)>, request: Request) -> Response {
    runs.outer.run().await;
    let again = Router::new().fallback(inner).with_state(runs).layer(layer(Policy::builder("api"), &store));
    again.oneshot(request).await.expect("a router answers")
}

/// If a request reaches a layer a second time, the layer's second run belongs to the first claim.
#[tokio::test]
async fn handler_forwarding_through_its_own_layer_runs_once() {
    let (runs, store) = (Both::free(), MemoryStore::new());
    let app = Router::new()
        .route("/alias", post(alias))
        .with_state((runs.clone(), store.clone()))
        .layer(Registry::new(store.clone()).layer())
        .layer(layer(Policy::builder("api"), &store));
    let server = Server::start(app).await;
    for is_replay in [false, true, true] {
        let answer = server.post_with_key("/alias", "k").await;
        assert_eq!((answer.text(), answer.is_replay()), ("inner 1", is_replay));
    }
    assert_eq!(runs.started(), (1, 1));
    let scopes = store.list(None, 10).await.expect("the store answers").entries;
    let mut scopes: Vec<_> = scopes.iter().map(|entry| entry.key.scope().into_owned()).collect();
    scopes.sort();
    assert_eq!(scopes, ["alias", "inner"], "only the handlers' own guards have recorded");
}

async fn tell(State(runs): State<Both>, idempotency: Idempotency) -> Result<String, Response> {
    let run = idempotency.step("reserve", || async { Ok::<_, Response>(runs.inner.run().await) }).await?;
    Ok(format!("{:?} {run}", idempotency.key()))
}

#[idempotent(scope = "declines", cache = [402])]
async fn declines(State(runs): State<Both>, _: Idempotency) -> (StatusCode, String) {
    (StatusCode::OK, format!("run {}", runs.outer.run().await))
}

#[idempotent(scope = "forwarded-api")]
async fn of_the_layers_scope(State(runs): State<Both>, _: Idempotency) -> String {
    format!("run {}", runs.outer.run().await)
}

/// A middleware around the layer extracts `Idempotency` first.
#[tokio::test]
async fn what_is_extracted_above_a_layer_does_not_hide_the_layer() {
    let (runs, store) = (Both::free(), MemoryStore::new());
    let look = async |idempotency: Idempotency, request: Request, next: Next| {
        assert_eq!(idempotency.key(), None, "nothing is claimed yet");
        next.run(request).await
    };
    let app = Router::new()
        .route("/tell", post(tell))
        .route("/declines", post(declines))
        .route("/same", post(of_the_layers_scope))
        .with_state(runs.clone())
        .layer(Registry::new(store.clone()).layer())
        .layer(layer(Policy::builder("forwarded-api"), &store))
        .layer(from_fn(look));
    let server = Server::start(app).await;

    assert_eq!(server.post_with_key("/tell", "told").await.text(), r#"Some("told") 1"#);
    let step = RecordKey::new("forwarded-api", None, "told").step("reserve");
    assert!(store.get(&step).await.expect("the store answers").is_some());
    for run in 1..=2 {
        let answer = server.post_with_key("/declines", "declined").await;
        assert_eq!((answer.text(), answer.is_replay()), (format!("run {run}").as_str(), false), "its policy says so");
    }
    for is_replay in [false, true] {
        let answer = server.post_with_key("/same", "same").await;
        assert_eq!((answer.text(), answer.is_replay()), ("run 3", is_replay));
    }
}

#[idempotent(scope = "forwarded-transactions")]
async fn in_a_transaction(State(runs): State<Both>, _tx: Tx<Sqlite>) -> String {
    format!("run {}", runs.outer.run().await)
}

/// The layer has a key. The inner handler has none, and its store has no transactions.
#[tokio::test]
async fn layer_that_records_all_records_no_rejection_beneath_it() {
    let (runs, store) = (Both::free(), MemoryStore::new());
    let app = Router::new()
        .route("/", post(in_a_transaction))
        .with_state(runs.clone())
        .layer(Registry::new(store.clone()).layer())
        .layer(layer(Policy::builder("api").header("x-request-id").cache_all(), &store));
    let server = Server::start(app).await;
    for _ in 1..=2 {
        let rejected = answer(server.post("/").header("x-request-id", "k")).await;
        assert_eq!((rejected.rejection().as_str(), rejected.is_replay()), ("transaction_failed", false));
    }
    assert_eq!((runs.started(), store.len()), ((0, 0), 0));
}

#[idempotent(scope = "batches", shared_scope)]
async fn batch(State(runs): State<Both>, request: Request) -> Response {
    runs.outer.run().await;
    let router: Router = Router::new().fallback(part_of_batch).with_state(runs);
    router.oneshot(request).await.expect("a router answers")
}

#[idempotent(scope = "batches", shared_scope, cache = [402])]
async fn part_of_batch(State(runs): State<Both>, idempotency: Idempotency) -> Result<String, Response> {
    let run = idempotency.step("reserve", || async { Ok::<_, Response>(runs.inner.run().await) }).await?;
    Ok(format!("{:?} {run}", idempotency.key()))
}

/// The handler runs under the outermost claim of its key. This is the claim of a layer or of the forwarding handler,
/// whose policy decides whether the response is recorded.
#[tokio::test]
async fn a_handler_that_is_forwarded_its_own_key_runs_once() {
    let chains = [vec![], vec!["other"], vec!["batches"], vec!["batches", "other"], vec!["batches", "batches"]];
    for scopes in chains {
        let (runs, store) = (Both::free(), MemoryStore::new());
        let mut app = Router::new()
            .route("/batches", post(batch))
            .with_state(runs.clone())
            .layer(Registry::new(store.clone()).layer());
        for scope in scopes.iter().rev() {
            app = app.layer(layer(Policy::builder(*scope), &store));
        }
        let server = Server::start(app).await;
        for is_replay in [false, true, true] {
            let answer = server.post_with_key("/batches", "k").await;
            assert_eq!((answer.text(), answer.is_replay()), (r#"Some("k") 1"#, is_replay), "{scopes:?}");
        }
        assert_eq!(runs.started(), (1, 1), "{scopes:?}");
        let step = RecordKey::new("batches", None, "k").step("reserve");
        assert!(store.get(&step).await.expect("the store answers").is_some(), "under the claim of its own key");
    }
}

#[idempotent(scope = "passes-on")]
async fn passes_on(State(runs): State<Both>, request: Request) -> Response {
    runs.outer.run().await;
    let router: Router = Router::new().fallback(of_the_layers_scope).with_state(runs);
    router.oneshot(request).await.expect("a router answers")
}

#[tokio::test]
async fn handler_beneath_two_guards_runs_under_the_outer_claim() {
    let (runs, store) = (Both::free(), MemoryStore::new());
    let app = Router::new()
        .route("/", post(passes_on))
        .with_state(runs.clone())
        .layer(Registry::new(store.clone()).layer())
        .layer(layer(Policy::builder("b"), &store))
        .layer(layer(Policy::builder("api"), &store));
    let server = Server::start(app).await;
    for is_replay in [false, true] {
        let answer = server.post_with_key("/", "k").await;
        assert_eq!((answer.text(), answer.is_replay()), ("run 2", is_replay));
    }
    assert_eq!(runs.started(), (2, 0), "each of the two has run once");
}

#[idempotent(scope = "once")]
async fn once(State(runs): State<Both>, _: Request) -> String {
    format!("run {}", runs.outer.run().await)
}

/// Both copies contain what the middleware has extracted. But only a request that the guard passes on is inside of the
/// guard.
#[tokio::test]
async fn a_request_that_a_middleware_sends_twice_is_executed_once() {
    let (runs, store) = (Both { outer: Runs::held(), inner: Runs::free() }, MemoryStore::new());
    let twice = async |_: Idempotency, request: Request, next: Next| {
        let (parts, _) = request.into_parts();
        let copy = || Request::from_parts(parts.clone(), axum::body::Body::empty());
        let first = tokio::spawn(next.clone().run(copy()));
        runs_of(&parts).outer.until_started(1).await;
        let second = next.run(copy()).await;
        assert_eq!(second.status(), StatusCode::CONFLICT, "the first one still runs");
        runs_of(&parts).outer.let_finish(2);
        first.await.expect("it runs to its end")
    };
    let app = Router::new()
        .route("/", post(once))
        .with_state(runs.clone())
        .layer(Registry::new(store.clone()).layer())
        .layer(from_fn(twice))
        .layer(axum::Extension(runs.clone()));
    let server = Server::start(app).await;
    assert_eq!(server.post_with_key("/", "k").await.text(), "run 1");
    assert_eq!(runs.started(), (1, 0));
}

fn runs_of(parts: &axum::http::request::Parts) -> Both {
    parts.extensions.get::<Both>().expect("a layer has put it there").clone()
}

type Kept = std::sync::Arc<std::sync::Mutex<Option<Request>>>;

#[idempotent(scope = "keeps")]
async fn keeps(State((runs, kept)): State<(Both, Kept)>, request: Request) -> String {
    *lock(&kept) = Some(request);
    format!("run {}", runs.outer.run().await)
}

/// The claim to which the run would belong has ended.
#[tokio::test]
async fn a_request_forwarded_after_its_response_gets_a_replay() {
    let (runs, store, kept) = (Both::free(), MemoryStore::new(), Kept::default());
    let app = Router::new()
        .route("/", post(keeps))
        .with_state((runs.clone(), Kept::clone(&kept)))
        .layer(Registry::new(store).layer());
    let server = Server::start(app.clone()).await;
    assert_eq!(server.post_with_key("/", "k").await.text(), "run 1");
    let request = lock(&kept).take().expect("the handler has kept it");
    let late = app.oneshot(request).await.expect("a router answers");
    assert!(late.headers().contains_key("idempotent-replayed"), "{late:?}");
    assert_eq!(runs.started(), (1, 0));
}
