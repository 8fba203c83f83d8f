//! The order of the layers in the page, and each of the wrong orders.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{AfterCrash, IdempotencyLayer, Policy, Registry, idempotent};
use idempotent_tests::{Answer, FaultyStore, Logs, Runs, Server, answer};
use reqwest::Method;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;
use tower_http::cors::{AllowOrigin, Any, CorsLayer};
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

/// The state of the application's own layers, which the tests read and set.
#[derive(Clone, Default)]
struct Gatekeeper {
    revoked: Arc<AtomicBool>,
    exhausted: Arc<AtomicBool>,
    counted: Arc<AtomicUsize>,
}

async fn authenticate(State(keeper): State<Gatekeeper>, request: Request, next: Next) -> Result<Response, StatusCode> {
    let is_known = request.headers().get("authorization").is_some_and(|token| token == "Bearer of-alice");
    if is_known && !keeper.revoked.load(Ordering::SeqCst) {
        Ok(next.run(request).await)
    } else {
        Err(StatusCode::UNAUTHORIZED)
    }
}

async fn limit_rate(State(keeper): State<Gatekeeper>, request: Request, next: Next) -> Result<Response, StatusCode> {
    keeper.counted.fetch_add(1, Ordering::SeqCst);
    if keeper.exhausted.load(Ordering::SeqCst) {
        Err(StatusCode::TOO_MANY_REQUESTS)
    } else {
        Ok(next.run(request).await)
    }
}

#[idempotent(scope = "ordered-charges", cache = [201, 402])]
async fn create_charge(State(runs): State<Runs>, _order: String) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {} {}", runs.run().await, "x".repeat(2000)))
}

async fn plain(State(runs): State<Runs>, _order: String) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {} {}", runs.run().await, "x".repeat(2000)))
}

fn timeout(milliseconds: u64) -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(milliseconds))
}

fn cors() -> CorsLayer {
    let allowed = [header::AUTHORIZATION, header::CONTENT_TYPE, HeaderName::from_static("idempotency-key")];
    let exposed = [header::RETRY_AFTER, HeaderName::from_static("idempotent-replayed")];
    CorsLayer::new().allow_origin(Any).allow_headers(allowed).expose_headers(exposed)
}

/// A server with all layers in the order of the picture.
async fn in_order(runs: &Runs, keeper: &Gatekeeper, store: FaultyStore, limit: u64) -> Server {
    let layers = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(timeout(limit))
        .layer(CompressionLayer::new())
        .layer(cors())
        .layer(from_fn_with_state(keeper.clone(), authenticate))
        .layer(from_fn_with_state(keeper.clone(), limit_rate))
        .layer(Registry::new(store).layer());
    Server::start(Router::new().route("/charges", post(create_charge)).with_state(runs.clone()).layer(layers)).await
}

/// A server of a plain handler inside of an `IdempotencyLayer` and these layers, the outermost first.
macro_rules! beneath {
    ($policy:expr, $runs:expr, $($layer:expr),*) => {{
        let policy = $policy.cache([201]).build().expect("the policy is valid");
        let layer = IdempotencyLayer::new(policy).with_registry(Registry::new(MemoryStore::new()));
        let layers = ServiceBuilder::new().layer(layer)$(.layer($layer))*;
        Server::start(Router::new().route("/charges", post(plain)).with_state($runs.clone()).layer(layers)).await
    }};
}

async fn charge(server: &Server, headers: &[(&str, &str)]) -> Answer {
    charge_for(server, headers, "tea").await
}

async fn charge_for(server: &Server, headers: &[(&str, &str)], order: &'static str) -> Answer {
    let request = server.post("/charges").header("idempotency-key", "k").header("origin", "https://shop.example");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    answer(request.body(order)).await
}

const ALICE: (&str, &str) = ("authorization", "Bearer of-alice");
const GZIP: (&str, &str) = ("accept-encoding", "gzip");

fn encoding(headers: &HeaderMap) -> Option<&str> {
    headers.get("content-encoding").map(|encoding| encoding.to_str().expect("text"))
}

#[tokio::test]
async fn order_of_the_picture_replays_through_every_layer() {
    let (runs, keeper, store) = (Runs::free(), Gatekeeper::default(), FaultyStore::new());
    let server = in_order(&runs, &keeper, store.clone(), 20_000).await;
    let first = charge(&server, &[ALICE, GZIP]).await;
    assert_eq!((first.status, encoding(&first.headers)), (StatusCode::CREATED, Some("gzip")));
    let replay = charge(&server, &[ALICE]).await;
    assert_eq!((replay.is_replay(), encoding(&replay.headers)), (true, None));
    assert!(replay.text().starts_with("run 1 x"), "the record is not compressed");
    assert_eq!(encoding(&charge(&server, &[ALICE, GZIP]).await.headers), Some("gzip"), "a replay is compressed too");
    let reused = charge_for(&server, &[ALICE], "ham").await;
    assert_eq!(
        (reused.rejection().as_str(), &reused.headers["access-control-allow-origin"]),
        ("key_reused", &"*".parse().expect("text"))
    );
    assert_eq!(keeper.counted.load(Ordering::SeqCst), 4, "retries count");

    let preflight = server.request(Method::OPTIONS, "/charges").header("origin", "https://shop.example");
    let preflight = answer(preflight.header("access-control-request-method", "POST")).await;
    assert_eq!(preflight.status, StatusCode::OK, "before authentication");
    assert_eq!(preflight.headers["access-control-allow-headers"], "authorization,content-type,idempotency-key");

    let claims = store.claims();
    assert_eq!(charge(&server, &[]).await.status, StatusCode::UNAUTHORIZED);
    keeper.exhausted.store(true, Ordering::SeqCst);
    assert_eq!(charge(&server, &[ALICE]).await.status, StatusCode::TOO_MANY_REQUESTS);
    keeper.revoked.store(true, Ordering::SeqCst);
    assert_eq!(charge(&server, &[ALICE]).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!((store.claims(), runs.started()), (claims, 1), "neither asks the store");
}

#[tokio::test]
async fn timeout_around_the_guard_lets_the_retry_replay() {
    let (runs, keeper) = (Runs::held(), Gatekeeper::default());
    let server = in_order(&runs, &keeper, FaultyStore::new(), 300).await;
    assert_eq!(charge(&server, &[ALICE]).await.status, StatusCode::GATEWAY_TIMEOUT);
    runs.let_finish(1);
    let retry = idempotent_tests::eventually(async || charge(&server, &[ALICE]).await, Answer::is_replay).await;
    assert_eq!((retry.status, runs.started()), (StatusCode::CREATED, 1));
}

/// The client of the first request accepts gzip, and the client of the retry does not.
#[tokio::test]
async fn compression_beneath_the_layer_compresses_no_record() {
    let compression = || CompressionLayer::new().compress_when(SizeAbove::new(32));
    let runs = Runs::free();
    let server = beneath!(Policy::builder("order-gzip"), runs, compression());
    for is_replay in [false, true] {
        for accepted in [&[GZIP][..], &[]] {
            let answer = charge(&server, accepted).await;
            assert_eq!((answer.is_replay(), encoding(&answer.headers)), (is_replay || accepted.is_empty(), None));
            assert!(answer.text().starts_with("run 1 x"));
        }
    }
    let unkeyed = answer(server.post("/charges").header(GZIP.0, GZIP.1).body("tea")).await;
    assert_eq!(encoding(&unkeyed.headers), Some("gzip"), "a response that is not recorded is compressed");
}

/// Each client gets the encoding that it accepts, also for replays.
#[tokio::test]
async fn compression_around_the_layer_compresses_replays() {
    let runs = Runs::free();
    let policy = Policy::builder("order-gzip-around").cache([201]).build().expect("the policy is valid");
    let layer = IdempotencyLayer::new(policy).with_registry(Registry::new(MemoryStore::new()));
    let compression = || CompressionLayer::new().compress_when(SizeAbove::new(32));
    let layers = ServiceBuilder::new().layer(compression()).layer(layer).layer(compression());
    let app = Router::new().route("/charges", post(plain)).with_state(runs.clone()).layer(layers);
    let server = Server::start(app).await;
    for (is_replay, accepted, expected) in
        [(false, &[GZIP][..], Some("gzip")), (true, &[], None), (true, &[GZIP], Some("gzip"))]
    {
        let answer = charge(&server, accepted).await;
        assert_eq!((answer.is_replay(), encoding(&answer.headers)), (is_replay, expected));
    }
}

#[tokio::test]
async fn timeout_beneath_the_layer_runs_the_handler_again() {
    let runs = Runs::held();
    let server = beneath!(Policy::builder("order-timeout"), runs, timeout(100));
    for run in [1, 2] {
        assert_eq!(charge(&server, &[]).await.status, StatusCode::GATEWAY_TIMEOUT);
        runs.until_abandoned(run).await;
    }
    assert_eq!((runs.started(), runs.finished()), (2, 0));
}

#[tokio::test]
async fn cors_beneath_the_layer_leaves_rejections_unreadable() {
    let runs = Runs::free();
    let server = beneath!(Policy::builder("order-cors"), runs, cors());
    assert!(charge(&server, &[]).await.headers.contains_key("access-control-allow-origin"));
    let reused = charge_for(&server, &[], "ham").await;
    assert_eq!(reused.rejection(), "key_reused");
    assert!(!reused.headers.contains_key("access-control-allow-origin"));
}

fn mirrored_cors() -> CorsLayer {
    CorsLayer::new().allow_origin(AllowOrigin::mirror_request()).allow_credentials(true)
}

async fn charge_from(server: &Server, origin: &str) -> (bool, Option<String>) {
    let request = server.post("/charges").header("idempotency-key", "k").header("origin", origin);
    let answer = answer(request.body("tea")).await;
    let allowed = answer.headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN);
    (answer.is_replay(), allowed.map(|origin| origin.to_str().expect("text").to_owned()))
}

#[tokio::test]
async fn cors_beneath_the_layer_is_not_replayed_and_logged_once() {
    let (runs, logs) = (Runs::free(), Logs::collect());
    let server = beneath!(Policy::builder("order-cors-origin"), runs, mirrored_cors());
    assert_eq!(charge_from(&server, "https://a.example").await, (false, Some("https://a.example".to_owned())));
    assert_eq!(charge_from(&server, "https://b.example").await, (true, None));
    assert_eq!(answer(server.post("/charges").header("idempotency-key", "k2").body("tea")).await.status, 201);
    let text = logs.text();
    assert_eq!(text.matches("put the CorsLayer around the IdempotencyLayer").count(), 1, "{text}");
}

#[tokio::test]
async fn cors_around_the_layer_answers_each_origin() {
    let (runs, logs) = (Runs::free(), Logs::collect());
    let policy = Policy::builder("order-cors-around").cache([201]).build().expect("the policy is valid");
    let layer = IdempotencyLayer::new(policy).with_registry(Registry::new(MemoryStore::new()));
    let layers = ServiceBuilder::new().layer(mirrored_cors()).layer(layer);
    let app = Router::new().route("/charges", post(plain)).with_state(runs.clone()).layer(layers);
    let server = Server::start(app).await;
    for (is_replay, origin) in [(false, "https://a.example"), (true, "https://b.example")] {
        assert_eq!(charge_from(&server, origin).await, (is_replay, Some(origin.to_owned())));
    }
    assert!(!logs.text().contains("CorsLayer"), "{}", logs.text());
}

/// A policy that keeps these headers declares that they are the same for all origins.
#[tokio::test]
async fn cors_beneath_the_layer_is_replayed_if_the_policy_keeps_it() {
    let (runs, logs) = (Runs::free(), Logs::collect());
    let kept = ["access-control-allow-origin", "access-control-expose-headers"];
    let server = beneath!(Policy::builder("order-cors-kept").keep_headers(kept), runs, cors());
    for is_replay in [false, true] {
        assert_eq!(charge_from(&server, "https://a.example").await, (is_replay, Some("*".to_owned())));
    }
    assert!(!logs.text().contains("CorsLayer"), "{}", logs.text());
}

#[tokio::test]
async fn authentication_beneath_the_layer_replays_to_the_revoked() {
    let (runs, keeper) = (Runs::free(), Gatekeeper::default());
    let server = beneath!(Policy::builder("order-auth"), runs, from_fn_with_state(keeper.clone(), authenticate));
    assert_eq!(charge(&server, &[ALICE]).await.status, StatusCode::CREATED);
    keeper.revoked.store(true, Ordering::SeqCst);
    let retry = charge(&server, &[ALICE]).await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, true));
}

#[tokio::test]
async fn rate_limit_beneath_the_layer_counts_no_replay() {
    let (runs, keeper) = (Runs::free(), Gatekeeper::default());
    let server = beneath!(Policy::builder("order-rate"), runs, from_fn_with_state(keeper.clone(), limit_rate));
    for _ in 0..3 {
        charge(&server, &[]).await;
    }
    assert_eq!(keeper.counted.load(Ordering::SeqCst), 1);
}

async fn panics(State(runs): State<Runs>) -> StatusCode {
    let run = runs.run().await;
    assert!(run > 1, "run {run} panics");
    StatusCode::CREATED
}

#[tokio::test]
async fn catch_panic_beneath_the_layer_runs_what_must_not_run() {
    for (is_beneath, runs_of_both) in [(true, 2), (false, 1)] {
        let runs = Runs::free();
        let policy = Policy::builder("order-panic")
            .cache([201])
            .after_crash(AfterCrash::Reject)
            .build()
            .expect("the policy is valid");
        let layer = IdempotencyLayer::new(policy).with_registry(Registry::new(MemoryStore::new()));
        let route = post(panics).with_state(runs.clone());
        let app = if is_beneath {
            Router::new().route("/charges", route).layer(CatchPanicLayer::new()).layer(layer)
        } else {
            Router::new().route("/charges", route).layer(layer).layer(CatchPanicLayer::new())
        };
        let server = Server::start(app).await;
        assert_eq!(charge(&server, &[]).await.status, StatusCode::INTERNAL_SERVER_ERROR);
        let retry = charge(&server, &[]).await;
        assert_eq!(runs.started(), runs_of_both, "{retry:?}");
        assert_eq!(retry.status, if is_beneath { StatusCode::CREATED } else { StatusCode::CONFLICT });
    }
}

#[tokio::test]
async fn cors_beneath_authentication_fails_the_preflight() {
    let keeper = Gatekeeper::default();
    let layers = ServiceBuilder::new().layer(from_fn_with_state(keeper, authenticate)).layer(cors());
    let app = Router::new().route("/charges", post(plain)).with_state(Runs::free()).layer(layers);
    let server = Server::start(app).await;
    let preflight = server.request(Method::OPTIONS, "/charges").header("origin", "https://shop.example");
    let preflight = answer(preflight.header("access-control-request-method", "POST")).await;
    assert_eq!(preflight.status, StatusCode::UNAUTHORIZED);
    assert!(!preflight.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn registry_beneath_the_layer_is_not_seen_by_it() {
    let runs = Runs::free();
    let policy = Policy::builder("order-registry").build().expect("the policy is valid");
    let registry = Registry::new(MemoryStore::new());
    let layers = ServiceBuilder::new().layer(IdempotencyLayer::new(policy)).layer(registry.layer());
    let app = Router::new().route("/charges", post(plain)).with_state(runs.clone()).layer(layers);
    let server = Server::start(app).await;
    assert_eq!(charge(&server, &[]).await.rejection(), "store_unavailable");
    assert_eq!(runs.started(), 0);
}
