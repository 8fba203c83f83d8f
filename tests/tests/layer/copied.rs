//! Copies of a request that a middleware or a batch handler makes: each copy has its own key, steps, transaction and
//! end, and copies with the same key are executed once.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::post;
use futures_util::future::join;
use idempotent_runtime::store::{MemoryStore, SqliteStore};
use idempotent_runtime::{AfterCrash, Idempotency, IdempotencyLayer, Policy, PolicyBuilder, Registry, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Fault, FaultyStore, Logs, PATIENCE, Runs, Server, eventually};
use sqlx::Sqlite;
use sqlx::sqlite::SqliteConnectOptions;
use tower::ServiceExt;

fn copy(parts: &Parts, key: &str) -> Request {
    let mut parts = parts.clone();
    parts.headers.insert("idempotency-key", key.parse().expect("it is a header value"));
    Request::from_parts(parts, Body::from(key.to_owned()))
}

async fn text(response: Response) -> String {
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("the body arrives");
    String::from_utf8(body.to_vec()).expect("it is text")
}

/// A store whose claims are answered late.
fn slow() -> (FaultyStore, Registry) {
    let store = FaultyStore::new();
    store.on_claim(Fault::AnswerIsLate);
    (store.clone(), Registry::builder(store).store_timeout(PATIENCE).build())
}

/// Answers the last two claims when this many claims were made, and later claims at once.
async fn answer_two_of(store: &FaultyStore, claims: usize) {
    eventually(async || store.claims(), |&made| made >= claims).await;
    store.on_claim(Fault::None);
    store.let_through();
    store.let_through();
}

#[idempotent(scope = "copies-parts")]
async fn part(idempotency: Idempotency, body: String) -> Result<String, Response> {
    let charged = idempotency.step("charge", || async { Ok::<_, Response>(format!("{body} charged")) }).await?;
    Ok(format!("{}: {charged}, {}", idempotency.key().unwrap_or("none"), idempotency.downstream_key("network")))
}

/// Checks that each copy sees its own key and its own step, and that the downstream keys differ.
fn assert_own(answer: &str) {
    let (a, b) = answer.split_once('|').expect("both have answered");
    let (a, b) = (a.strip_prefix("a: a charged, "), b.strip_prefix("b: b charged, "));
    assert!(a.is_some() && b.is_some() && a != b, "{answer}");
}

#[tokio::test]
async fn copies_sent_at_once_have_their_own_keys_and_steps() {
    let fan_out = async |_: Idempotency, request: Request, next: Next| {
        let (parts, _) = request.into_parts();
        let (a, b) = join(next.clone().run(copy(&parts, "a")), next.run(copy(&parts, "b"))).await;
        format!("{}|{}", text(a).await, text(b).await)
    };
    let (store, registry) = slow();
    let app = Router::new().route("/", post(part)).layer(registry.layer()).layer(from_fn(fan_out));
    let server = Server::start(app).await;
    let (answer, ()) = join(server.post_with_key("/", "k"), answer_two_of(&store, 2)).await;
    assert_own(answer.text());
}

/// Not annotated. It extracts `Idempotency` like annotated handlers.
async fn batch(State(registry): State<Registry>, _: Idempotency, request: Request) -> String {
    let (parts, _) = request.into_parts();
    let inner: Router = Router::new().route("/", post(part)).layer(registry.layer());
    let one = async |key| text(inner.clone().oneshot(copy(&parts, key)).await.expect("a router answers")).await;
    let (a, b) = join(one("a"), one("b")).await;
    format!("{a}|{b}")
}

#[tokio::test]
async fn parts_of_an_unannotated_batch_have_their_own_keys() {
    let (store, registry) = slow();
    let server = Server::start(Router::new().route("/", post(batch)).with_state(registry)).await;
    let (answer, ()) = join(server.post_with_key("/", "k"), answer_two_of(&store, 2)).await;
    assert_own(answer.text());
}

#[idempotent(scope = "copies-waits", in_flight = wait("20s"))]
async fn waits(State(runs): State<Runs>, _: Idempotency) -> String {
    format!("run {}", runs.run().await)
}

#[tokio::test]
async fn copy_that_waits_leaves_the_running_handler_its_life() {
    let (runs, logs, (store, registry)) = (Runs::held(), Logs::collect(), slow());
    let hedge = async |_: Idempotency, request: Request, next: Next| {
        let (parts, _) = request.into_parts();
        join(next.clone().run(copy(&parts, "k")), next.run(copy(&parts, "k"))).await.0
    };
    let app = Router::new().route("/", post(waits)).with_state(runs.clone());
    let server = Server::start(app.layer(registry.layer()).layer(from_fn(hedge))).await;
    let request = b"POST / HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n";
    let client = server.connect_and_send(request).await;
    answer_two_of(&store, 2).await;
    runs.until_started(1).await;
    eventually(async || store.looks(), |&looks| looks > 0).await;
    drop(client);
    eventually(async || logs.text(), |text| text.contains("the handler continues")).await;
    runs.let_finish(2);
    runs.until_finished(1).await;
    assert_eq!(registry.drain(PATIENCE).await, 0);
    let retry = server.post_with_key("/", "k").await;
    assert_eq!((retry.text(), retry.is_replay(), runs.started()), ("run 1", true, 1));
}

#[idempotent(scope = "copies-retried")]
async fn fails_once(State(runs): State<Runs>, idempotency: Idempotency) -> Result<String, (StatusCode, String)> {
    let run = runs.run().await;
    let reserve = || async { Ok(format!("reserved in run {run}")) };
    let reserved: Result<String, idempotent_runtime::StepError> = idempotency.step("reserve", reserve).await;
    let said = format!("{:?}, run {run}, {}", idempotency.key(), reserved.expect("the step is taken once"));
    if run == 1 { Err((StatusCode::SERVICE_UNAVAILABLE, said)) } else { Ok(said) }
}

/// The middleware's own `Idempotency` belongs to the request of which it sends copies.
#[tokio::test]
async fn retries_in_a_middleware_are_attempts_of_one_key() {
    let runs = Runs::free();
    let retry = async |_: Idempotency, request: Request, next: Next| {
        let (parts, _) = request.into_parts();
        let first = next.clone().run(copy(&parts, "k")).await;
        assert_eq!(first.status(), StatusCode::SERVICE_UNAVAILABLE);
        next.run(copy(&parts, "k")).await
    };
    let registry = Registry::new(MemoryStore::new());
    let app = Router::new().route("/", post(fails_once)).with_state(runs.clone());
    let server = Server::start(app.layer(registry.layer()).layer(from_fn(retry))).await;
    let answer = server.post_with_key("/", "k").await;
    assert_eq!(answer.text(), r#"Some("k"), run 2, reserved in run 1"#);
    assert_eq!(runs.started(), 2);
}

fn layer(policy: PolicyBuilder, registry: &Registry) -> IdempotencyLayer {
    IdempotencyLayer::new(policy.build().expect("the policy is valid")).with_registry(registry.clone())
}

/// Two simultaneous copies reach a layer and a handler with different scopes. They are sent outside or inside of the
/// layer.
#[tokio::test]
async fn copies_meet_guards_of_two_scopes_and_run_once() {
    for beneath in [false, true] {
        let (runs, (store, registry)) = (Runs::free(), slow());
        let twice = async |_: Idempotency, request: Request, next: Next| {
            let (parts, _) = request.into_parts();
            let (a, b) = join(next.clone().run(copy(&parts, "k")), next.run(copy(&parts, "k"))).await;
            if a.status() == StatusCode::OK { a } else { b }
        };
        let mut app = Router::new().route("/", post(waits)).with_state(runs.clone()).layer(registry.layer());
        if beneath {
            app = app.layer(from_fn(twice)).layer(layer(Policy::builder("api"), &registry));
        } else {
            app = app.layer(layer(Policy::builder("api"), &registry)).layer(from_fn(twice));
        }
        let server = Server::start(app).await;
        let answer_claims = async {
            if beneath {
                store.let_through();
            }
            answer_two_of(&store, if beneath { 3 } else { 2 }).await;
        };
        let (first, ()) = join(server.post_with_key("/", "k"), answer_claims).await;
        let retry = server.post_with_key("/", "k").await;
        assert_eq!((first.text(), retry.text()), ("run 1", "run 1"), "beneath: {beneath}");
        assert_eq!(runs.started(), 1, "beneath: {beneath}");
    }
}

#[idempotent(scope = "copies-transactions")]
async fn transact(mut tx: Tx<Sqlite>, body: String) -> Result<String, StatusCode> {
    let inserted = sqlx::query("INSERT INTO charges (id) VALUES (?)").bind(&body).execute(&mut *tx).await;
    inserted.map(|_| body).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

#[tokio::test]
async fn copies_have_transactions_of_their_own() {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    let options = SqliteConnectOptions::new().filename(file.path());
    let pool = sqlx::SqlitePool::connect_with(options).await.expect("the file opens");
    sqlx::query("CREATE TABLE charges (id TEXT)").execute(&pool).await.expect("the table is made");
    let fan_out = async |_: Idempotency, request: Request, next: Next| {
        let (parts, _) = request.into_parts();
        let (a, b) = join(next.clone().run(copy(&parts, "a")), next.run(copy(&parts, "b"))).await;
        format!("{}|{}", text(a).await, text(b).await)
    };
    let app = Router::new().route("/", post(transact)).layer(Registry::new(store).layer()).layer(from_fn(fan_out));
    assert_eq!(Server::start(app).await.post_with_key("/", "k").await.text(), "a|b");
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM charges").fetch_one(&pool).await.expect("it is counted");
    assert_eq!(rows, 2);
}

#[idempotent(scope = "copies-api")]
async fn of_the_layers_scope(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

async fn serve_same_scope(runs: &Runs, between: bool, sends_second: bool, policy: PolicyBuilder) -> Server {
    let twice = move |request: Request, next: Next| async move {
        let (parts, _) = request.into_parts();
        let first = next.clone().run(copy(&parts, "k")).await;
        let second = next.run(copy(&parts, "k")).await;
        assert_eq!((first.status(), second.status()), (StatusCode::OK, StatusCode::CONFLICT));
        if sends_second { second } else { first }
    };
    let registry = Registry::new(MemoryStore::new());
    let mut app = Router::new().route("/", post(of_the_layers_scope)).with_state(runs.clone());
    app = app.layer(registry.layer()).layer(from_fn(twice));
    if between {
        app = app.layer(layer(Policy::builder("copies-between"), &registry));
    }
    Server::start(app.layer(layer(policy, &registry))).await
}

/// A layer has claimed the key. A middleware inside of it sends the request twice to a handler of the same scope.
#[tokio::test]
async fn one_claim_lets_one_run_through_its_inner_guard() {
    for between in [false, true] {
        let runs = Runs::free();
        let server = serve_same_scope(&runs, between, false, Policy::builder("copies-api")).await;
        for is_replay in [false, true] {
            let answer = server.post_with_key("/", "k").await;
            assert_eq!((answer.text(), answer.is_replay()), ("run 1", is_replay), "between: {between}");
        }
        assert_eq!(runs.started(), 1);
    }
}

/// The layer gets the rejection of the second run, so it does not know what the first run has done.
#[tokio::test]
async fn rejection_of_a_second_run_is_never_recorded() {
    let logs = Logs::collect();
    for between in [false, true] {
        let runs = Runs::free();
        let policy = Policy::builder("copies-api").cache_all().after_crash(AfterCrash::Reject);
        let server = serve_same_scope(&runs, between, true, policy).await;
        assert_eq!(server.post_with_key("/", "k").await.rejection(), "in_flight");
        let retry = server.post_with_key("/", "k").await;
        assert_eq!((retry.rejection().as_str(), retry.is_replay()), ("outcome_unknown", false), "between: {between}");
        assert_eq!(runs.started(), 1);
    }
    assert!(logs.text().contains("something sent a request twice under one claim"), "{}", logs.text());
}

/// Sends two copies with one key, answers with the first response and drops the other copy, as a hedging middleware
/// does.
async fn race(_: Idempotency, request: Request, next: Next) -> Response {
    let (parts, _) = request.into_parts();
    let copies = [next.clone(), next].map(|next| Box::pin(next.run(copy(&parts, "k"))));
    futures_util::future::select_all(copies).await.0
}

#[idempotent(scope = "copies-raced")]
async fn raced(State(runs): State<Runs>, _: Idempotency) -> String {
    format!("run {}", runs.run().await)
}

/// The copy that gets 409 wins the race. The running copy is dropped, and continues; it also continues if the client
/// disconnects.
#[tokio::test]
async fn copy_that_loses_a_race_runs_to_its_end() {
    for client_leaves in [false, true] {
        let (runs, (store, registry)) = (Runs::held(), slow());
        let app = Router::new().route("/raced", post(raced)).route("/waits", post(waits)).with_state(runs.clone());
        let server = Server::start(app.layer(registry.layer()).layer(from_fn(race))).await;
        let path = if client_leaves { "/waits" } else { "/raced" };
        let request =
            format!("POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n");
        let client = server.connect_and_send(request.as_bytes()).await;
        answer_two_of(&store, 2).await;
        runs.until_started(1).await;
        if client_leaves {
            eventually(async || store.looks(), |&looks| looks > 0).await;
            drop(client);
        }
        runs.let_finish(2);
        runs.until_finished(1).await;
        assert_eq!(registry.drain(PATIENCE).await, 0);
        let retry = server.post_with_key(path, "k").await;
        assert_eq!((retry.text(), retry.is_replay(), runs.started()), ("run 1", true, 1), "{path}");
    }
}
