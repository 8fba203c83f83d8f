//! An unknown outcome stays unknown until it is purged, in every store, however much time passes.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{AfterCrash, Claim, Held, MemoryStore, RedisStore, Store, StoreAdmin, Token};
use idempotent_runtime::{Idempotency, RecordKey, Registry, idempotent};
use idempotent_tests::redis::{RedisCluster, RedisServer};
use idempotent_tests::sqlite::{claim_request, record};
use idempotent_tests::{Runs, Server, eventually, leave_a_claim_for, stores};
use tower_http::catch_panic::CatchPanicLayer;

const TTL: Duration = Duration::from_secs(1);

#[idempotent(scope = "panics-for-good", fingerprint = none, ttl = "1s", lease = "300ms", after_crash = "reject")]
async fn panics(State(runs): State<Runs>) {
    panic!("run {}", runs.run().await);
}

#[idempotent(scope = "panics-in-a-step", fingerprint = none, ttl = "1s", lease = "300ms", after_crash = "reject")]
async fn panics_in_a_step(State(runs): State<Runs>, idempotency: Idempotency) -> StatusCode {
    let charged: Result<(), StatusCode> = idempotency.step("charge", async || panic!("run {}", runs.run().await)).await;
    charged.err().unwrap_or(StatusCode::OK)
}

#[idempotent(scope = "changes-its-policy", fingerprint = none, ttl = "1s", lease = "300ms", after_crash = "reject")]
async fn rejects(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

async fn serve(runs: &Runs, store: &(impl StoreAdmin + Clone)) -> Server {
    let app = Router::new()
        .route("/panics", post(panics))
        .route("/panics-in-a-step", post(panics_in_a_step))
        .route("/rejects", post(rejects))
        .with_state(runs.clone())
        .layer(Registry::new(store.clone()).layer())
        .layer(CatchPanicLayer::new());
    Server::start(app).await
}

/// Waits until a claim that began now would have expired.
async fn until_the_ttl_is_over(store: &impl StoreAdmin) {
    let key = RecordKey::new("expires", None, &format!("{:x}", Token::unique().as_u128()));
    let request = claim_request().with_lease(TTL / 2).with_ttl(TTL).with_after_crash(AfterCrash::Rerun);
    assert_eq!(store.claim(&key, request).await.expect("the store answers"), Claim::Acquired { attempt: 1 });
    eventually(async || store.get(&key).await.expect("the store answers"), Option::is_none).await;
}

async fn a_panic_is_never_run_again(store: &(impl StoreAdmin + Clone)) {
    let runs = Runs::free();
    let server = serve(&runs, store).await;
    for (path, scope) in [("/panics", "panics-for-good"), ("/panics-in-a-step", "panics-in-a-step")] {
        let before = runs.started();
        assert_eq!(server.post_with_key(path, "k").await.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(server.post_with_key(path, "k").await.rejection(), "outcome_unknown", "at once");
        until_the_ttl_is_over(store).await;
        let _ = store.delete_expired().await.expect("the store answers");
        assert_eq!(server.post_with_key(path, "k").await.rejection(), "outcome_unknown", "after the ttl");
        assert_eq!(runs.started(), before + 1);
        let key = RecordKey::new(scope, None, "k");
        assert!(store.get(&key).await.expect("the store answers").is_some(), "operators see it");
        assert!(store.purge(&key).await.expect("the store answers"));
    }
    assert_eq!(server.post_with_key("/panics", "k").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(runs.started(), 3, "a purge lets it run");
    assert!(store.purge(&RecordKey::new("panics-for-good", None, "k")).await.expect("the store answers"));
}

/// The claim was made while the handler had `after_crash = "rerun"`, and would expire by itself.
async fn what_was_rejected_once_stays_rejected(store: &(impl StoreAdmin + Clone)) {
    let runs = Runs::free();
    let server = serve(&runs, store).await;
    let (key, token) = leave_a_claim_for(store, "changes-its-policy", TTL / 2, TTL).await;
    let lapsed = store.renew(&key, token, Duration::ZERO).await.expect("the store answers");
    assert_eq!(lapsed, Held::Yes);
    assert_eq!(server.post_with_key("/rejects", "k").await.rejection(), "outcome_unknown");
    until_the_ttl_is_over(store).await;
    assert_eq!(server.post_with_key("/rejects", "k").await.rejection(), "outcome_unknown");
    assert_eq!(runs.started(), 0);
    assert!(store.purge(&key).await.expect("the store answers"));
    assert_eq!(server.post_with_key("/rejects", "k").await.text(), "run 1");
    assert!(server.post_with_key("/rejects", "k").await.is_replay());
    until_the_ttl_is_over(store).await;
    assert_eq!(server.post_with_key("/rejects", "k").await.text(), "run 2", "a record expires as ever");
    assert!(store.purge(&key).await.expect("the store answers"));
}

macro_rules! in_every_store {
    ($($name:ident: $store:expr),* $(,)?) => { $(mod $name {
        use super::*;

        #[tokio::test]
        async fn an_unknown_outcome_outlives_its_ttl() {
            let (store, _outlives) = $store.await;
            a_panic_is_never_run_again(&store).await;
        }

        #[tokio::test]
        async fn a_rejected_retry_stays_rejected_after_the_ttl() {
            let (store, _outlives) = $store.await;
            what_was_rejected_once_stays_rejected(&store).await;
        }
    })* };
}

in_every_store! {
    memory: without_more(async { MemoryStore::new() }),
    sqlite: stores::sqlite(),
    postgres: without_more(stores::postgres(4)),
    redis: without_more(stores::redis()),
    redis_cluster: without_more(stores::redis_cluster()),
}

/// Each store comes with a value that must live longer than the store. Here there is none.
async fn without_more<S>(store: impl Future<Output = S>) -> (S, ()) {
    (store.await, ())
}

/// The set of claims that never expire keeps no claim that has ended, whichever server of a Cluster has which key.
async fn leaves_no_name_behind(store: RedisStore, members: impl AsyncFn() -> usize) {
    let key = |number: usize| RecordKey::new("indexed", None, &number.to_string());
    let reject = || claim_request().with_after_crash(AfterCrash::Reject);
    let requests: Vec<_> = (0..30).map(|_| reject()).collect();
    for (number, request) in requests.iter().enumerate() {
        let claim = store.claim(&key(number), *request).await.expect("the store answers");
        assert_eq!(claim, Claim::Acquired { attempt: 1 });
    }
    assert_eq!(members().await, 30);
    for (number, request) in requests.iter().enumerate() {
        let ended = match number % 3 {
            0 => {
                store.complete(&key(number), request.token, record("paid"), TTL).await.expect("it is kept") == Held::Yes
            }
            1 => store.release(&key(number), request.token).await.expect("it is released") == Held::Yes,
            _ => store.purge(&key(number)).await.expect("it is purged"),
        };
        assert!(ended, "{number}");
    }
    assert_eq!(members().await, 0);
}

#[tokio::test]
async fn the_set_of_a_redis_forgets_what_has_ended() {
    let (server, prefix) = (RedisServer::shared().await, stores::prefix());
    let store = RedisStore::builder(&server.url()).prefix(&prefix).open().await.expect("the store opens");
    leaves_no_name_behind(store, async || server.command(&format!("SCARD {prefix}unknown_outcomes")).await).await;
}

#[tokio::test]
async fn the_set_of_a_cluster_forgets_what_has_ended() {
    let (cluster, prefix) = (RedisCluster::shared().await, stores::prefix());
    let store = RedisStore::cluster(cluster.urls()).prefix(&prefix).open().await.expect("the store opens");
    let members = async || {
        let mut members = 0;
        for master in cluster.masters() {
            // Servers that do not have the set answer with an address and not with a number.
            let mut connection = master.connection().await;
            let counted =
                ::redis::cmd("SCARD").arg(format!("{prefix}unknown_outcomes")).query_async(&mut connection).await;
            members += counted.unwrap_or(0);
        }
        members
    };
    leaves_no_name_behind(store, members).await;
}
