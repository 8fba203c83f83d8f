//! The engine as a tower layer: around whole routers, around services that are not axum's, and around annotated
//! handlers.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use idempotent_runtime::store::{MemoryStore, StoreAdmin};
use idempotent_runtime::{
    AfterCrash, Idempotency, IdempotencyLayer, InFlight, Policy, PolicyBuilder, Registry, idempotent,
};
use idempotent_tests::{Answer, Runs, Server, answer, eventually};
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;

async fn create_charge(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

async fn decline(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::PAYMENT_REQUIRED, format!("declined {}", runs.run().await))
}

fn layer(policy: PolicyBuilder, store: &MemoryStore) -> IdempotencyLayer {
    let policy = policy.build().expect("the policy is valid");
    IdempotencyLayer::new(policy).with_registry(Registry::new(store.clone()))
}

async fn serve(policy: PolicyBuilder, runs: &Runs, store: &MemoryStore) -> Server {
    let app = Router::new()
        .route("/charges", post(create_charge).get(create_charge).put(create_charge))
        .route("/declined", post(decline))
        .with_state(runs.clone())
        .layer(layer(policy, store));
    Server::start(app).await
}

#[tokio::test]
async fn a_whole_router_is_guarded() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let server = serve(Policy::builder("api"), &runs, &store).await;
    let first = server.post_with_key("/charges", "a").await;
    assert_eq!((first.status, first.text(), first.is_replay()), (StatusCode::CREATED, "charge 1", false));
    let second = server.post_with_key("/charges", "a").await;
    assert_eq!((second.status, second.text(), second.is_replay()), (StatusCode::CREATED, "charge 1", true));
    let other_route = server.post_with_key("/declined", "a").await;
    assert_eq!(other_route.rejection(), "key_reused");
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn what_the_policy_leaves_alone_passes_through() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let purge = Method::from_bytes(b"PURGE").expect("a token");
    let server = serve(Policy::builder("api").methods([Method::PUT, purge]), &runs, &store).await;
    for number in 1..=2 {
        assert_eq!(server.post_with_key("/charges", "a").await.text(), format!("charge {number}"));
    }
    for _ in 1..=2 {
        let put = server.request(Method::PUT, "/charges").header("idempotency-key", "b");
        assert_eq!(answer(put).await.text(), "charge 3");
    }
    for number in 4..=5 {
        assert_eq!(answer(server.request(Method::PUT, "/charges")).await.text(), format!("charge {number}"));
    }
}

#[tokio::test]
async fn statuses_that_are_not_recorded_free_the_key() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let server = serve(Policy::builder("api"), &runs, &store).await;
    for number in 1..=2 {
        assert_eq!(server.post_with_key("/declined", "a").await.text(), format!("declined {number}"));
    }
    assert!(store.is_empty());

    let recording = serve(Policy::builder("api").cache((200..=299).chain([402])), &runs, &store).await;
    for _ in 1..=2 {
        assert_eq!(recording.post_with_key("/declined", "b").await.text(), "declined 3");
    }
    let predicate = Policy::builder("predicate").cache_if(|parts| parts.status == StatusCode::PAYMENT_REQUIRED);
    let predicate = serve(predicate, &runs, &store).await;
    for _ in 1..=2 {
        assert_eq!(predicate.post_with_key("/declined", "c").await.text(), "declined 4");
    }
}

#[tokio::test]
async fn a_missing_and_an_odd_key_are_rejected_as_the_policy_says() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let server = serve(Policy::builder("api").required().header("X-Request-Id"), &runs, &store).await;
    assert_eq!(server.post_with_key("/charges", "a").await.rejection(), "missing_key");
    let odd = server.post("/charges").header("x-request-id", "a,b");
    assert_eq!(answer(odd).await.rejection(), "invalid_key");
    let good = server.post("/charges").header("x-request-id", "a");
    assert_eq!(answer(good).await.text(), "charge 1");
}

#[tokio::test]
async fn a_duplicate_of_a_running_request_is_rejected_or_waits() {
    let (runs, store) = (Runs::held(), MemoryStore::new());
    let server = serve(Policy::builder("api"), &runs, &store).await;
    let waiting = Policy::builder("api").in_flight(InFlight::Wait(Duration::from_mins(1)));
    let waiting = serve(waiting, &runs, &store).await;
    let first = server.post_with_key("/charges", "a");
    let others = async {
        runs.until_started(1).await;
        assert_eq!(server.post_with_key("/charges", "a").await.rejection(), "in_flight");
        let (late, ()) = tokio::join!(waiting.post_with_key("/charges", "a"), async { runs.let_finish(1) });
        late
    };
    let (first, late) = tokio::join!(first, others);
    assert_eq!((first.text(), first.is_replay()), ("charge 1", false));
    assert_eq!((late.text(), late.is_replay()), ("charge 1", true));
}

#[tokio::test]
async fn a_request_goes_on_when_its_client_leaves() {
    let (runs, store) = (Runs::held(), MemoryStore::new());
    let server = serve(Policy::builder("api"), &runs, &store).await;
    tokio::select! {
        _ = server.post_with_key("/charges", "a") => panic!("the handler is held"),
        () = runs.until_started(1) => {}
    }
    runs.let_finish(1);
    runs.until_finished(1).await;
    let replay = eventually(async || server.post_with_key("/charges", "a").await, Answer::is_replay).await;
    assert_eq!((replay.text(), runs.started()), ("charge 1", 1));
}

/// A handler without the attribute gets the key and the attempt of the layer's claim.
#[tokio::test]
async fn a_plain_handler_learns_its_key() {
    let key = async |idempotency: Idempotency| format!("{:?} {}", idempotency.key(), idempotency.attempt());
    let app = Router::new().route("/", post(key)).layer(layer(Policy::builder("api"), &MemoryStore::new()));
    let server = Server::start(app).await;
    assert_eq!(server.post_with_key("/", "a").await.text(), r#"Some("a") 1"#);
    assert_eq!(answer(server.post("/")).await.text(), "None 1");
}

#[idempotent(scope = "services-annotated", cache = [402])]
async fn annotated(State(runs): State<Runs>, idempotency: Idempotency) -> (StatusCode, String) {
    (StatusCode::PAYMENT_REQUIRED, format!("{:?} {}", idempotency.key(), runs.run().await))
}

#[idempotent(scope = "services-api")]
async fn of_the_same_scope(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

/// The handler's policy takes precedence over the layer's. The layer records neither the handler's response nor its
/// replays and rejections.
#[tokio::test]
async fn annotated_handler_under_a_layer_is_recorded_once_by_itself() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let app = Router::new()
        .route("/annotated", post(annotated))
        .route("/same", post(of_the_same_scope))
        .with_state(runs.clone())
        .layer(Registry::new(store.clone()).layer())
        .layer(layer(Policy::builder("services-api").cache_all(), &store));
    // The layer has its own registry. The handler uses the registry of the router.
    let server = Server::start(app).await;
    for is_replay in [false, true, true] {
        let answer = server.post_with_key("/annotated", "a").await;
        assert_eq!((answer.text(), answer.is_replay()), (r#"Some("a") 1"#, is_replay));
        assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED);
    }
    let entries = store.list(None, 10).await.expect("the store answers").entries;
    assert_eq!(entries.iter().map(|entry| entry.key.scope().into_owned()).collect::<Vec<_>>(), ["services-annotated"]);
    let reused = server.post("/annotated?other").header("idempotency-key", "a");
    for _ in 1..=2 {
        assert_eq!(answer(reused.try_clone().expect("it has no body")).await.rejection(), "key_reused");
    }
    assert_eq!(store.len(), 1);

    for is_replay in [false, true] {
        let answer = server.post_with_key("/same", "b").await;
        assert_eq!((answer.text(), answer.is_replay()), ("charge 2", is_replay));
    }
    assert_eq!((store.len(), runs.started()), (2, 2));
}

#[tokio::test]
async fn layers_of_layers_claim_once_for_each_scope() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let app = Router::new()
        .route("/", post(create_charge))
        .with_state(runs.clone())
        .layer(layer(Policy::builder("inner"), &store))
        .layer(layer(Policy::builder("outer"), &store))
        .layer(layer(Policy::builder("outer"), &store));
    let server = Server::start(app).await;
    for is_replay in [false, true] {
        let answer = server.post_with_key("/", "a").await;
        assert_eq!((answer.text(), answer.is_replay()), ("charge 1", is_replay));
    }
    assert_eq!(store.len(), 1);
}

#[tokio::test]
async fn a_request_without_a_registry_is_rejected() {
    let policy = Policy::builder("api").build().expect("the policy is valid");
    let app = Router::new().route("/", post(async || "charged")).layer(IdempotencyLayer::new(policy));
    let server = Server::start(app).await;
    let answer = server.post_with_key("/", "a").await;
    assert_eq!(answer.rejection(), "store_unavailable");
    let problem = answer.json();
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.starts_with("This request ran nothing")));
}

#[derive(Debug, PartialEq)]
struct Broken;

fn request(key: &str) -> Request {
    Request::post("/").header("idempotency-key", key).body(Body::empty()).expect("the request is well-formed")
}

fn failing_first(
    calls: &Arc<AtomicUsize>,
) -> impl Service<Request, Response = Response, Error = Broken, Future: Send> + Clone + Send + use<> {
    let calls = Arc::clone(calls);
    service_fn(move |_: Request| {
        let call = calls.fetch_add(1, Ordering::SeqCst);
        async move { if call == 0 { Err(Broken) } else { Ok(StatusCode::CREATED.into_response()) } }
    })
}

/// A tower service with its own error type. Its errors are not recorded.
#[tokio::test]
async fn service_error_reaches_the_caller_unrecorded() {
    let calls = Arc::default();
    let rerun = layer(Policy::builder("rerun").cache_all(), &MemoryStore::new()).layer(failing_first(&calls));
    assert_eq!(rerun.clone().oneshot(request("a")).await.map(drop), Err(Broken));
    let retry = rerun.clone().oneshot(request("a")).await.expect("the second call succeeds");
    assert_eq!((retry.status(), retry.headers().get("idempotent-replayed")), (StatusCode::CREATED, None));
    let replay = rerun.oneshot(request("a")).await.expect("a replay");
    assert_eq!(replay.headers()["idempotent-replayed"], "true");

    let calls = Arc::default();
    let policy = Policy::builder("reject").cache_all().after_crash(AfterCrash::Reject);
    let reject = layer(policy, &MemoryStore::new()).layer(failing_first(&calls));
    assert_eq!(reject.clone().oneshot(request("a")).await.map(drop), Err(Broken));
    let retry = reject.oneshot(request("a")).await.expect("a rejection");
    assert_eq!((retry.status(), calls.load(Ordering::SeqCst)), (StatusCode::CONFLICT, 1));
}

#[tokio::test]
async fn any_body_will_do() {
    let echo = service_fn(async |request: Request| {
        let body = axum::body::to_bytes(request.into_body(), 1024).await.expect("the body comes");
        Ok::<_, Infallible>(http::Response::new(http_body_util::Full::new(body)))
    });
    let service = layer(Policy::builder("api"), &MemoryStore::new()).layer(echo);
    for _ in 1..=2 {
        let body = http_body_util::Full::new(bytes::Bytes::from_static(b"paid"));
        let request = http::Request::post("/").header("idempotency-key", "a").body(body).expect("it is well-formed");
        let response = service.clone().oneshot(request).await.expect("the service never fails");
        let body = axum::body::to_bytes(response.into_body(), 1024).await.expect("the body comes");
        assert_eq!(&*body, b"paid");
    }
}

#[test]
fn a_header_with_another_meaning_carries_no_key() {
    for (name, told) in [
        ("X-Api-Key", "`header`: `x-api-key` identifies the client"),
        ("authorization", "`header`: `authorization` identifies the client"),
        ("cookie", "`header`: `cookie` identifies the client"),
        ("proxy-authorization", "`header`: `proxy-authorization` identifies the client"),
        ("Content-Type", "`header`: `content-type` has another meaning in HTTP"),
        ("host", "`header`: `host` has another meaning in HTTP"),
    ] {
        let wrong = Policy::builder("api").header(name).build().expect_err("it is rejected");
        let mistakes: Vec<&str> = wrong.mistakes().collect();
        assert!(matches!(&mistakes[..], [only] if only.starts_with(told)), "{told}: {mistakes:?}");
    }
}

#[test]
fn a_wrong_policy_names_every_mistake() {
    let wrong = Policy::builder(" ")
        .ttl(Duration::from_millis(10))
        .cache([100, 201])
        .header("x request")
        .methods([])
        .lease(Duration::from_millis(1))
        .keep_headers(["Content-Length", "x-a"])
        .drop_headers(["X-A", "Idempotent-Replayed"])
        .in_flight(InFlight::Wait(Duration::ZERO))
        .store("\n")
        .build();
    let mistakes: Vec<String> = wrong.expect_err("all of it is wrong").mistakes().map(ToOwned::to_owned).collect();
    let begin = [
        "`scope` must not be blank",
        "`ttl` must be at least 1s; write",
        "`cache` holds 100: an interim status",
        "`header`: \"x request\" is no header name",
        "`methods` must name at least one",
        "`lease` must be at least 100ms",
        "`keep_headers`: `content-length` belongs",
        "`drop_headers`: `idempotent-replayed` marks",
        "`in_flight` must be at least 1ms",
        "`store` must not be blank",
        "`x-a` is both in `keep_headers` and in `drop_headers`",
    ];
    assert_eq!(mistakes.len(), begin.len(), "{mistakes:#?}");
    for (mistake, begin) in mistakes.iter().zip(begin) {
        assert!(mistake.starts_with(begin), "{mistake} / {begin}");
    }
    let too_long = Policy::builder("a").in_flight(InFlight::Wait(Duration::from_hours(101 * 8766))).build();
    assert!(too_long.expect_err("no limit is so long").to_string().contains("`in_flight` must be at most 100years"));
    assert!(Policy::builder("a").in_flight(InFlight::Wait(Duration::MAX)).build().is_ok());
    let longer = Policy::builder("a").ttl(Duration::from_secs(1)).lease(Duration::from_secs(2)).build();
    assert!(longer.expect_err("the lease is longer").to_string().contains("`lease` must not be longer than `ttl`"));
    assert_eq!(
        Policy::builder("a").ttl(Duration::from_secs(1)).build().expect("it is valid").lease(),
        Duration::from_secs(1)
    );
}

#[tokio::test]
async fn reads_pass_through_to_annotated_and_plain_handlers() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let app = Router::new().route("/", get(create_charge)).with_state(runs.clone());
    let server = Server::start(app.layer(layer(Policy::builder("api").any_method(), &store))).await;
    let mut headers = HeaderMap::new();
    headers.insert("idempotency-key", "a".parse().expect("a header value"));
    for _ in 1..=2 {
        let read = server.request(Method::GET, "/").headers(headers.clone());
        assert_eq!(answer(read).await.text(), "charge 1");
    }
}
