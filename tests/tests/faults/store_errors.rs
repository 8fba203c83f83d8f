//! The store fails: which answers clients get, and which claims and records are kept.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{EntryState, Held, MemoryStore, RedisStore, Store, StoreAdmin};
use idempotent_runtime::{Idempotency, RecordKey, Registry, idempotent};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Answer, Fault, FaultyStore, Logs, PATIENCE, Runs, Server, answer, eventually, leave_a_claim};

#[idempotent(scope = "charges")]
async fn create_charge(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "runs", on_store_error = "run")]
async fn runs_unguarded(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "fails")]
async fn fails(State(runs): State<Runs>) -> StatusCode {
    runs.run().await;
    StatusCode::INTERNAL_SERVER_ERROR
}

#[idempotent(scope = "short-lease", lease = "200ms", in_flight = wait("20s"))]
async fn with_short_lease(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "runs-after-waiting", on_store_error = "run", in_flight = wait("20s"))]
async fn runs_after_waiting(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "rejects-after-crash", after_crash = "reject")]
async fn rejects_after_crash(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "attempts", fingerprint = none)]
async fn tells_its_attempt(idempotency: Idempotency) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("attempt {}", idempotency.attempt()))
}

const TIMEOUT: Duration = Duration::from_millis(100);

async fn serve(runs: &Runs, store: impl StoreAdmin) -> (Server, Registry) {
    serve_with(runs, Registry::builder(store).store_timeout(TIMEOUT).build()).await
}

async fn serve_with(runs: &Runs, registry: Registry) -> (Server, Registry) {
    let app = Router::new()
        .route("/charges", post(create_charge))
        .route("/runs", post(runs_unguarded))
        .route("/fails", post(fails))
        .route("/short-lease", post(with_short_lease))
        .route("/runs-after-waiting", post(runs_after_waiting))
        .route("/rejects-after-crash", post(rejects_after_crash))
        .route("/attempts", post(tells_its_attempt))
        .with_state(runs.clone())
        .layer(registry.layer());
    (Server::start(app).await, registry)
}

fn assert_unavailable(answer: &Answer) {
    assert_eq!((answer.status, answer.rejection().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"));
    assert_eq!(answer.headers["retry-after"], "1");
}

#[tokio::test]
async fn store_that_fails_is_full_or_hangs_is_503_and_runs_nothing() {
    for fault in [Fault::Unreachable, Fault::Full, Fault::Hangs] {
        let (runs, store) = (Runs::free(), FaultyStore::new());
        let (server, _) = serve(&runs, store.clone()).await;
        store.on_claim(fault);
        assert_unavailable(&server.post_with_key("/charges", "k").await);
        assert_eq!(runs.started(), 0, "{fault:?}");
        store.on_claim(Fault::None);
        assert_eq!(server.post_with_key("/charges", "k").await.text(), "charge 1", "{fault:?}");
    }
}

#[tokio::test]
async fn the_default_limit_for_a_store_call_is_two_seconds() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    store.on_claim(Fault::Hangs);
    let app = Router::new().route("/", post(create_charge)).with_state(runs).layer(Registry::new(store).layer());
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let request = axum::http::Request::post("/").header("idempotency-key", "k").body(axum::body::Body::empty());
    let response = tower::ServiceExt::oneshot(app, request.expect("a well-formed request")).await.expect("infallible");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(begun.elapsed().as_secs(), 2);
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_given_back() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let (server, _) = serve(&runs, store.clone()).await;
    store.on_claim(Fault::AnswerIsLost);
    assert_unavailable(&server.post_with_key("/charges", "k").await);
    store.on_claim(Fault::None);
    let retry =
        eventually(async || server.post_with_key("/charges", "k").await, |answer| answer.status == StatusCode::CREATED)
            .await;
    assert_eq!((retry.text(), retry.is_replay()), ("charge 1", false));
}

/// Regression test: the handler had run in a process that died, and a takeover of its claim was given back. The next
/// execution was then told that it was the first attempt.
#[tokio::test]
async fn claim_given_back_hides_no_crashed_attempt() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let (server, _) = serve(&runs, store.clone()).await;
    let (key, token) = leave_a_claim(&store, "attempts", Duration::from_secs(30)).await;
    assert_eq!(store.renew(&key, token, Duration::ZERO).await.expect("the store answers"), Held::Yes);
    store.on_claim(Fault::AnswerIsLost);
    assert_unavailable(&server.post_with_key("/attempts", "k").await);
    store.on_claim(Fault::None);
    let retry = eventually(
        async || server.post_with_key("/attempts", "k").await,
        |answer| answer.status == StatusCode::CREATED,
    )
    .await;
    assert_eq!(retry.text(), "attempt 3", "the second one took over, and nothing ran under it");
}

#[tokio::test]
async fn claim_that_arrives_after_its_rejection_is_given_back() {
    for path in ["/charges", "/rejects-after-crash"] {
        let (runs, store) = (Runs::free(), FaultyStore::new());
        let (server, _) = serve(&runs, store.clone()).await;
        store.on_claim(Fault::ArrivesLate);
        assert_unavailable(&server.post_with_key(path, "k").await);
        // Under `after_crash = "reject"`, the release keeps the late claim out. Otherwise the engine looks for the
        // claim until it has arrived.
        eventually(async || store.ends() + store.looks(), |&tried| tried >= 1).await;
        store.on_claim(Fault::None);
        store.let_through();
        let retry =
            eventually(async || server.post_with_key(path, "k").await, |answer| answer.status == StatusCode::CREATED)
                .await;
        assert_eq!((retry.text(), retry.is_replay()), ("charge 1", false));
    }
}

#[tokio::test]
async fn claim_answered_after_its_lease_runs_unless_taken_over() {
    for is_taken_over in [false, true] {
        let (runs, store) = (Runs::free(), FaultyStore::new());
        let (server, _) = serve_with(&runs, Registry::builder(store.clone()).store_timeout(PATIENCE).build()).await;
        store.on_claim(Fault::AnswerIsLate);
        let late = async { server.post_with_key("/short-lease", "k").await };
        let meanwhile = async {
            let key = RecordKey::new("short-lease", None, "k");
            // A claim whose lease has expired has `lease: None`.
            eventually(
                async || store.get(&key).await.expect("the store answers").map(|entry| entry.state),
                |state| matches!(state, Some(EntryState::Claimed { lease: None, .. })),
            )
            .await;
            store.on_claim(Fault::None);
            if is_taken_over {
                assert_eq!(server.post_with_key("/short-lease", "k").await.text(), "charge 1");
            }
            store.let_through();
        };
        let (late, ()) = tokio::join!(late, meanwhile);
        if is_taken_over {
            assert_unavailable(&late);
        } else {
            assert_eq!(late.text(), "charge 1");
        }
        assert!(server.post_with_key("/short-lease", "k").await.is_replay());
        assert_eq!(runs.started(), 1, "taken over: {is_taken_over}");
    }
}

#[tokio::test]
async fn a_waiter_that_saw_another_request_run_never_runs_unguarded() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let (server, _) = serve(&runs, store.clone()).await;
    let first = async { server.post_with_key("/runs-after-waiting", "k").await };
    let second = async {
        runs.until_started(1).await;
        let waiter = async { server.post_with_key("/runs-after-waiting", "k").await };
        let break_store = async {
            // The second request waits.
            eventually(async || store.looks(), |&looks| looks >= 1).await;
            store.on_claim(Fault::Unreachable);
            runs.let_finish(2);
        };
        let (waiter, ()) = tokio::join!(waiter, break_store);
        assert_unavailable(&waiter);
    };
    let (first, ()) = tokio::join!(first, second);
    assert_eq!(first.text(), "charge 1");
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn on_store_error_run_runs_unguarded() {
    for fault in [Fault::Unreachable, Fault::Hangs] {
        let (runs, store) = (Runs::free(), FaultyStore::new());
        let (server, _) = serve(&runs, store.clone()).await;
        store.on_claim(fault);
        store.on_get(fault);
        for number in 1..=2 {
            assert_eq!(server.post_with_key("/runs", "k").await.text(), format!("charge {number}"), "{fault:?}");
        }
    }
}

/// If one client fills the store, the retries of other clients must not run again. So a store that can still be read
/// does not count as unreachable, whatever error a claim gets.
#[tokio::test]
async fn on_store_error_run_runs_nothing_beside_what_can_be_read() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let (server, _) = serve(&runs, store.clone()).await;
    assert_eq!(server.post_with_key("/runs", "k").await.text(), "charge 1");
    store.on_claim(Fault::Unreachable);
    assert_unavailable(&server.post_with_key("/runs", "k").await);
    assert_unavailable(&server.post_with_key("/runs", "another").await);
    store.on_claim(Fault::None);
    assert!(server.post_with_key("/runs", "k").await.is_replay());
    assert_eq!(runs.started(), 1);
}

/// The server answers the claim with `NOREPLICAS` or, on a replica, `READONLY`, and still answers reads.
#[tokio::test]
async fn redis_that_takes_no_writes_runs_no_retry_unguarded() {
    let redis = RedisServer::start(&[]).await;
    let runs = Runs::free();
    let store = RedisStore::connect(&redis.url()).await.expect("the store opens");
    let (server, _) = serve_with(&runs, Registry::new(store)).await;
    assert_eq!(server.post_with_key("/runs", "k").await.text(), "charge 1");
    for setting in ["CONFIG SET min-replicas-to-write 1", "REPLICAOF 127.0.0.1 1"] {
        let _: String = redis.command(setting).await;
        let retry = server.post_with_key("/runs", "k").await;
        // Redis 6.2 runs a script as far as its first write, and a replay needs none.
        if redis.version().await >= 7 || !retry.is_replay() {
            assert_unavailable(&retry);
        }
    }
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn on_store_error_run_runs_nothing_in_a_full_store() {
    let runs = Runs::free();
    let (server, _) = serve(&runs, MemoryStore::builder().max_bytes(1_500).build()).await;
    let mut kept = 0;
    while server.post_with_key("/charges", &format!("k{kept}")).await.status == StatusCode::CREATED {
        kept += 1;
    }
    for _ in 0..2 {
        assert_unavailable(&server.post_with_key("/runs", "another").await);
    }
    assert_eq!(runs.started(), kept);
    assert!(server.post_with_key("/charges", "k0").await.is_replay());
}

#[tokio::test]
async fn caller_that_has_used_its_share_stops_no_other_one() {
    let (runs, logs) = (Runs::free(), Logs::collect());
    let store = MemoryStore::builder().max_bytes(1 << 20).max_bytes_per_caller(2_000).build();
    let by_header = |head: &axum::http::request::Parts| {
        head.headers.get("x-caller").map(|caller| caller.to_str().unwrap_or_default().to_owned())
    };
    let (server, _) = serve_with(&runs, Registry::builder(store.clone()).caller(by_header).build()).await;
    let send = |caller: &'static str, path: &'static str, key: String| {
        answer(server.post(path).header("idempotency-key", key).header("x-caller", caller))
    };
    let mut kept = 0;
    while send("mallory", "/charges", format!("k{kept}")).await.status == StatusCode::CREATED {
        kept += 1;
    }
    assert!((2..10).contains(&kept), "{kept} records");
    // The limit holds under every policy and in every scope.
    for path in ["/charges", "/runs"] {
        assert_unavailable(&send("mallory", path, "more".to_owned()).await);
        assert_eq!(send("alice", path, "k".to_owned()).await.status, StatusCode::CREATED);
    }
    assert!(send("mallory", "/charges", "k0".to_owned()).await.is_replay());
    assert_eq!(runs.started(), kept + 2);
    assert!(logs.text().contains("used up its share") && !logs.text().contains("mallory"), "{}", logs.text());
    // A purged entry no longer counts.
    let first = RecordKey::new("charges", Some("mallory"), "k0");
    assert!(store.purge(&first).await.expect("memory answers"));
    assert_eq!(send("mallory", "/charges", "more".to_owned()).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn damaged_record_is_503_under_every_policy() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let (server, _) = serve(&runs, store.clone()).await;
    let logs = Logs::collect();
    store.on_claim(Fault::Damaged);
    for path in ["/charges", "/runs"] {
        assert_unavailable(&server.post_with_key(path, "planted-key").await);
    }
    assert_eq!(runs.started(), 0);
    let errors = logs.of_level("ERROR");
    assert!(errors.iter().any(|line| line.contains("charges") && line.contains("default")), "{errors:?}");
    assert!(!logs.text().contains("planted-key"));
}

#[tokio::test]
async fn response_not_recorded_is_sent_and_recorded_later() {
    for fault in [Fault::Unreachable, Fault::Hangs, Fault::AnswerIsLost] {
        let (runs, store) = (Runs::free(), FaultyStore::new());
        let (server, registry) = serve(&runs, store.clone()).await;
        let logs = Logs::collect();
        store.on_complete(fault);
        let first = server.post_with_key("/charges", "planted-key").await;
        assert_eq!((first.status, first.text()), (StatusCode::CREATED, "charge 1"), "{fault:?}");
        assert_eq!(first.headers["idempotent-recorded"], "false", "not yet: {fault:?}");
        let errors = logs.of_level("ERROR");
        assert!(
            errors.iter().any(|line| line.contains("scope=\"charges\"") && line.contains("create_charge")),
            "scope and handler in {errors:?}"
        );
        assert!(!logs.text().contains("planted-key"), "the key is in no log");
        if fault != Fault::AnswerIsLost {
            assert_eq!(server.post_with_key("/charges", "planted-key").await.rejection(), "in_flight", "{fault:?}");
        }
        store.on_complete(Fault::None);
        assert_eq!(registry.drain(PATIENCE).await, 0, "a drain waits for the recording");
        let retry = server.post_with_key("/charges", "planted-key").await;
        assert_eq!((retry.text(), retry.is_replay()), ("charge 1", true), "{fault:?}");
        assert_eq!(runs.started(), 1);
    }
}

#[tokio::test]
async fn response_waits_for_a_store_away_for_a_moment() {
    let (runs, store, logs) = (Runs::free(), FaultyStore::new(), Logs::collect());
    let (server, _) = serve(&runs, store.clone()).await;
    store.on_complete(Fault::Unreachable);
    let server = std::sync::Arc::new(server);
    let first = tokio::spawn({
        let server = server.clone();
        async move { server.post_with_key("/charges", "k").await }
    });
    eventually(async || store.completions(), |&tries| tries >= 3).await;
    assert!(!first.is_finished(), "what is sent before it is recorded is forgotten when the process dies");
    store.on_complete(Fault::None);
    assert_eq!(first.await.expect("the request runs").text(), "charge 1");
    assert!(server.post_with_key("/charges", "k").await.is_replay());
    assert_eq!(logs.of_level("ERROR"), Vec::<String>::new());
}

#[tokio::test]
async fn the_claim_is_held_while_the_recording_is_tried_again() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let (server, _) = serve(&runs, store.clone()).await;
    store.on_complete(Fault::Unreachable);
    assert_eq!(server.post_with_key("/short-lease", "k").await.text(), "charge 1");
    // The retries come after 50, 100, 200 and 400 ms, in all longer than the lease of 200 ms.
    eventually(async || store.completions(), |&tried| tried >= 5).await;
    let key = RecordKey::new("short-lease", None, "k");
    let entry = store.get(&key).await.expect("the store answers").expect("the key has an entry");
    assert!(matches!(entry.state, EntryState::Claimed { attempt: 1, lease: Some(_), .. }), "{entry:?}");
    store.on_complete(Fault::None);
    assert!(server.post_with_key("/short-lease", "k").await.is_replay());
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn a_release_that_fails_is_tried_again() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let (server, registry) = serve(&runs, store.clone()).await;
    store.on_release(Fault::Unreachable);
    assert_eq!(server.post_with_key("/fails", "k").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(server.post_with_key("/fails", "k").await.rejection(), "in_flight");
    store.on_release(Fault::None);
    assert_eq!(registry.drain(PATIENCE).await, 0);
    assert_eq!(server.post_with_key("/fails", "k").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(runs.started(), 2);
}

#[tokio::test]
async fn store_away_runs_no_request_beside_itself() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let (server, _) = serve(&runs, store.clone()).await;
    let first = tokio::spawn(answer(server.post("/runs").header("idempotency-key", "k")));
    runs.until_started(1).await;
    store.on_claim(Fault::Unreachable);
    store.on_get(Fault::Unreachable);
    tokio::select! {
        duplicate = server.post_with_key("/runs", "k") => assert_unavailable(&duplicate),
        () = runs.until_started(2) => panic!("it runs beside itself"),
    }

    runs.let_finish(2);
    assert_eq!(first.await.expect("the request runs").text(), "charge 1");
    assert_eq!(server.post_with_key("/runs", "another").await.text(), "charge 2");
    assert_eq!(runs.started(), 2);
}

#[tokio::test]
async fn a_full_store_rejects_new_keys_and_still_replays_old_ones() {
    let runs = Runs::free();
    let store = MemoryStore::builder().max_bytes(2_000).build();
    let (server, _) = serve(&runs, store.clone()).await;
    let mut recorded = 0;
    let rejected = loop {
        let answer = server.post_with_key("/charges", &format!("k{recorded}")).await;
        if answer.status != StatusCode::CREATED {
            break answer;
        }
        recorded += 1;
        assert!(recorded < 100, "the store is never full");
    };
    assert_unavailable(&rejected);
    assert!(recorded > 0);
    for number in 0..recorded {
        assert!(server.post_with_key("/charges", &format!("k{number}")).await.is_replay());
    }
    assert_eq!(runs.started(), recorded);
}

#[tokio::test]
async fn handler_that_lost_its_claim_overwrites_no_successor() {
    let runs = Runs::held();
    let store = FaultyStore::new();
    let (server, _) = serve(&runs, store.clone()).await;
    let (another_process, _) = serve(&runs, store.clone()).await;
    let logs = Logs::collect();
    let first = tokio::spawn(answer(server.post("/short-lease").header("idempotency-key", "k")));
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    // The lease expires while its holder cannot renew it, and a retry in another process takes over.
    let key = RecordKey::new("short-lease", None, "k");
    let state = async || store.get(&key).await.expect("the store answers").map(|entry| entry.state);
    eventually(state, |state| matches!(state, Some(EntryState::Claimed { lease: None, .. }))).await;
    let second = tokio::spawn(answer(another_process.post("/short-lease").header("idempotency-key", "k")));
    runs.until_started(2).await;
    runs.let_finish(1);
    let first = first.await.expect("the request runs");
    assert_eq!(first.rejection(), "claim_lost", "one key has one response");
    assert_eq!(first.headers["retry-after"], "1");
    assert!(logs.of_level("ERROR").iter().any(|line| line.contains("claim was lost")), "{:?}", logs.of_level("ERROR"));
    runs.let_finish(1);
    assert_eq!(second.await.expect("the request runs").text(), "charge 2");
    let retry = server.post_with_key("/short-lease", "k").await;
    assert_eq!((retry.text(), retry.is_replay()), ("charge 2", true));
}
