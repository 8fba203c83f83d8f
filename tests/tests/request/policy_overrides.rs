//! How the registry's configuration overrides the policies of handlers.

use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use idempotent_runtime::store::{EntryState, MemoryStore, StoreAdmin as _};
use idempotent_runtime::{
    Idempotency, IdempotencyLayer, Policy, PolicyOverride, RecordKey, Registry, idempotent, policies,
};
use idempotent_tests::{Runs, Server, answer};
use tower::ServiceExt;

#[idempotent(scope = "override-times", ttl = "24h", in_flight = wait("60s"))]
async fn times(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

#[idempotent(scope = "override-size", max_body = "1KiB")]
async fn size() -> &'static str {
    "12345"
}

#[idempotent(scope = "override-steps", max_body = "1KiB")]
async fn steps(idempotency: Idempotency) -> Result<String, Response> {
    Ok(idempotency.step("charge", async || Ok::<_, idempotent_runtime::StepError>("12345".to_owned())).await?)
}

#[idempotent(scope = "override-shared", shared_scope)]
async fn shared_charge() {}

#[idempotent(scope = "override-shared", shared_scope)]
async fn shared_refund() {}

/// Forwards its own request to itself, under the registry around that router.
#[idempotent(scope = "override-forwards", fingerprint = none)]
async fn forwards(State((runs, inner)): State<(Runs, Registry)>, request: Request) -> Response {
    let app = Router::new().route("/forwards", post(beneath)).with_state(runs.clone()).layer(inner.layer());
    runs.run().await;
    app.oneshot(request).await.expect("a router answers")
}

#[idempotent(scope = "override-beneath", fingerprint = none)]
async fn beneath(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

type Change = fn(PolicyOverride) -> PolicyOverride;

struct Bench {
    server: Server,
    store: MemoryStore,
}

impl Bench {
    async fn new(scope: &str, runs: &Runs, change: Change) -> Self {
        let store = MemoryStore::new();
        let registry = Registry::builder(store.clone()).policy(scope, change).expect("a valid override").build();
        let app = Router::new()
            .route("/times", post(times))
            .route("/size", post(size))
            .route("/steps", post(steps))
            .route("/shared-charge", post(shared_charge))
            .route("/shared-refund", post(shared_refund))
            .with_state(runs.clone());
        Self { server: Server::start(app.layer(registry.layer())).await, store }
    }

    async fn expires_in(&self, scope: &str, key: &str) -> Duration {
        let entry = self.store.get(&RecordKey::new(scope, None, key)).await.expect("it answers");
        entry.and_then(|entry| entry.expires_in).expect("a record that expires")
    }
}

const HOUR: Duration = Duration::from_hours(1);

#[tokio::test]
async fn record_is_kept_for_the_ttl_of_the_configuration() {
    let bench = Bench::new("override-times", &Runs::free(), |policy| policy.ttl(72 * HOUR)).await;
    assert_eq!(bench.server.post_with_key("/times", "k").await.text(), "run 1");
    let left = bench.expires_in("override-times", "k").await;
    assert!(left > 71 * HOUR && left <= 72 * HOUR, "{left:?}");
    bench.server.post_with_key("/size", "k").await;
    let left = bench.expires_in("override-size", "k").await;
    assert!(left > 23 * HOUR && left <= 24 * HOUR, "another scope keeps its own: {left:?}");
    let written = policies().find(|policy| policy.scope() == "override-times").expect("it is annotated");
    assert_eq!(written.ttl(), 24 * HOUR, "the registry is not installed");
}

#[tokio::test]
async fn claim_has_the_lease_of_the_configuration() {
    let runs = Runs::held();
    let bench = Bench::new("override-times", &runs, |policy| policy.lease(2 * HOUR)).await;
    let first = tokio::spawn(answer(bench.server.post("/times").header("idempotency-key", "k")));
    runs.until_started(1).await;
    let entry = bench.store.get(&RecordKey::new("override-times", None, "k")).await.expect("it answers");
    let EntryState::Claimed { lease, .. } = entry.expect("a claim").state else { panic!("it runs") };
    assert!(lease.is_some_and(|lease| lease > HOUR), "{lease:?}");
    runs.let_finish(1);
    assert_eq!(first.await.expect("it is answered").text(), "run 1");
}

#[tokio::test]
async fn default_lease_follows_the_ttl_of_the_configuration() {
    let (short, long) = (Duration::from_secs(10), Duration::from_secs(30));
    let changes: [(Change, Duration); 3] = [
        (|policy| policy.ttl(Duration::from_secs(10)), short),
        (|policy| policy.ttl(HOUR), long),
        (|policy| policy.ttl(HOUR).lease(Duration::from_secs(10)), short),
    ];
    for (change, expected) in changes {
        let runs = Runs::held();
        let bench = Bench::new("override-times", &runs, change).await;
        let first = tokio::spawn(answer(bench.server.post("/times").header("idempotency-key", "k")));
        runs.until_started(1).await;
        let entry = bench.store.get(&RecordKey::new("override-times", None, "k")).await.expect("it answers");
        let EntryState::Claimed { lease, .. } = entry.expect("a claim").state else { panic!("it runs") };
        let shortest = expected / 2;
        assert!(lease.is_some_and(|lease| lease > shortest && lease <= expected), "{lease:?} of {expected:?}");
        runs.let_finish(1);
        assert_eq!(first.await.expect("it is answered").text(), "run 1");
    }
}

#[tokio::test]
async fn duplicate_waits_as_long_as_the_configuration_says() {
    let runs = Runs::held();
    let bench = Bench::new("override-times", &runs, |policy| policy.wait(Duration::from_millis(50))).await;
    let first = tokio::spawn(answer(bench.server.post("/times").header("idempotency-key", "k")));
    runs.until_started(1).await;
    assert_eq!(bench.server.post_with_key("/times", "k").await.rejection(), "in_flight");
    runs.let_finish(1);
    assert_eq!(first.await.expect("it is answered").text(), "run 1");
}

#[tokio::test]
async fn body_over_the_max_body_of_the_configuration_is_not_recorded() {
    let bench = Bench::new("override-size", &Runs::free(), |policy| policy.max_body(4)).await;
    assert_eq!(bench.server.post_with_key("/size", "k").await.text(), "12345");
    assert_eq!(bench.server.post_with_key("/size", "k").await.rejection(), "response_not_recorded");
    let bench = Bench::new("override-steps", &Runs::free(), |policy| policy.max_body(4)).await;
    assert_eq!(bench.server.post_with_key("/steps", "k").await.rejection(), "step_failed");
}

#[tokio::test]
async fn handlers_with_one_scope_have_one_override() {
    let bench = Bench::new("override-shared", &Runs::free(), |policy| policy.ttl(HOUR)).await;
    for (path, key) in [("/shared-charge", "a"), ("/shared-refund", "b")] {
        assert_eq!(bench.server.post_with_key(path, key).await.status, StatusCode::OK);
        let left = bench.expires_in("override-shared", key).await;
        assert!(left <= HOUR, "{path}: {left:?}");
    }
}

/// A handler under two registries is still one handler: if its request is forwarded to it, the second run belongs to
/// the first claim.
#[tokio::test]
async fn request_sent_on_under_another_registry_runs_once() {
    let runs = Runs::free();
    let store = MemoryStore::new();
    let registry = |ttl| {
        let registry = Registry::builder(store.clone()).policy("override-forwards", |policy| policy.ttl(ttl));
        registry.and_then(|registry| registry.policy("override-beneath", |policy| policy.ttl(ttl)))
    };
    let [outer, inner] = [HOUR, 2 * HOUR].map(|ttl| registry(ttl).expect("a valid override").build());
    let app = Router::new().route("/forwards", post(forwards)).with_state((runs.clone(), inner)).layer(outer.layer());
    let server = Server::start(app).await;
    for is_replay in [false, true] {
        let answer = server.post_with_key("/forwards", "k").await;
        assert_eq!((answer.text(), answer.is_replay()), ("run 2", is_replay));
    }
    assert_eq!(runs.started(), 2, "the handler, and the one beneath it");
}

#[test]
fn further_override_of_a_scope_keeps_the_first_one() {
    let registry = Registry::builder(MemoryStore::new())
        .policy("override-times", |policy| policy.ttl(HOUR))
        .and_then(|registry| registry.policy("override-times", |policy| policy.lease(HOUR)));
    let registry = registry.expect("the lease is as long as the ttl of the first override");
    let longer = registry.policy("override-times", |policy| policy.lease(2 * HOUR));
    assert!(longer.expect_err("longer than that ttl").to_string().contains("the ttl is 1h"));
}

#[test]
fn override_that_no_handler_can_have_is_told() {
    let mistakes: [(&str, Change, &str); 8] = [
        ("override-time", |policy| policy.ttl(HOUR), "no annotated handler has the scope \"override-time\""),
        ("override-time", |policy| policy, "\"override-times\""),
        ("override-times", |policy| policy.ttl(Duration::from_millis(1)), "must be at least 1s"),
        ("override-times", |policy| policy.lease(Duration::MAX).ttl(Duration::MAX), "must be at most 100years"),
        ("override-times", |policy| policy.lease(Duration::ZERO), "must be at least 100ms"),
        ("override-times", |policy| policy.ttl(Duration::from_secs(10)).lease(HOUR), "the ttl is 10s"),
        ("override-times", |policy| policy.wait(Duration::ZERO), "must be at least 1ms"),
        ("override-size", |policy| policy.wait(HOUR), "write `in_flight = wait(\"5s\")` there, or leave it out"),
    ];
    for (scope, change, told) in mistakes {
        let mistake = Registry::builder(MemoryStore::new()).policy(scope, change).expect_err("a mistake");
        assert!(mistake.to_string().contains(told), "{told} in {mistake}");
    }
}

/// A layer's policy is not a handler's policy, whether the layer already exists or not.
#[test]
fn override_of_a_layer_is_told_where_to_set_it() {
    let policy = Policy::builder("override-layer").build().expect("a valid policy");
    let layer = IdempotencyLayer::new(policy);
    let mistake = Registry::builder(MemoryStore::new()).policy("override-layer", |policy| policy.ttl(HOUR));
    let text = mistake.expect_err("no handler has this scope").to_string();
    assert!(text.contains("no annotated handler has the scope \"override-layer\""), "{text}");
    assert!(text.contains("`IdempotencyLayer`") && text.contains("`Policy::builder(\"override-layer\")"), "{text}");
    assert_eq!(layer.policy().ttl(), 24 * HOUR);
}

/// If `main` returns the error, the program prints it with `Debug`.
#[test]
fn debug_of_an_invalid_policy_is_its_message() {
    let mistake = Policy::builder(" ").build().expect_err("it is blank");
    assert_eq!(format!("{mistake:?}"), "the policy is invalid: `scope` must not be blank");
}
