//! Batches whose answer, server or callers are lost.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::{Claim, Held, RedisStore, Store, StoreAdmin, StoreError};
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::stores::{claim_request, record};
use idempotent_tests::{Mode, Proxy, Runs, Server, eventually};

use super::{
    CALLERS, answers, assert_claimed, assert_recorded, claim_all, complete_all, connect, is_first_attempt, key,
    name_of, requests,
};

async fn behind(server: &RedisServer) -> (RedisStore, Proxy) {
    let proxy = Proxy::to(server.address()).await;
    let store = RedisStore::connect(&format!("redis://{}/", proxy.address())).await.expect("the store opens");
    // Afterwards, the server has the script: its answer that it has not is not the one that is lost.
    let (key, warm) = (key("warm", 0), claim_request());
    assert!(is_first_attempt(&store.claim(&key, warm).await));
    assert_eq!(store.complete(&key, warm.token, record("paid"), warm.ttl).await.expect("it records"), Held::Yes);
    (store, proxy)
}

/// How many of the keys have a value that begins like this.
async fn having(server: &RedisServer, name: &str, state: &str) -> usize {
    let mut connection = server.connection().await;
    let mut get = redis::cmd("MGET");
    (0..CALLERS).for_each(|number| _ = get.arg(name_of(name, number)));
    let values: Vec<Option<String>> = get.query_async(&mut connection).await.expect("it answers");
    values.iter().flatten().filter(|value| value.starts_with(&format!("{{\"state\":\"{state}\""))).count()
}

/// The answers are lost, and the server has done all of it. What is sent again gets the same answers.
#[tokio::test]
async fn lost_answers_of_batches_are_given_again() {
    let server = RedisServer::start(&[]).await;
    let (store, proxy) = behind(&server).await;
    let requests = requests();
    proxy.set(Mode::LosesAnswers);
    let claims = claim_all(&store, "lost", &requests);
    eventually(async || having(&server, "lost", "claimed").await, |&having| having == CALLERS).await;
    proxy.break_open();
    proxy.set(Mode::Passes);
    let claims = answers(claims).await;
    assert!(claims.iter().all(is_first_attempt), "{claims:?}");
    proxy.set(Mode::LosesAnswers);
    let completions = complete_all(&store, "lost", &requests, 10);
    eventually(async || having(&server, "lost", "completed").await, |&having| having == CALLERS).await;
    proxy.break_open();
    proxy.set(Mode::Passes);
    let completed = answers(completions).await;
    assert!(completed.iter().all(|held| matches!(held, Ok(Held::Yes))), "{completed:?}");
    assert_recorded(&store, "lost", 10).await;
}

/// The connection does not come back in time. Every operation of a batch may have taken effect, and its caller is told so.
#[tokio::test]
async fn operations_of_a_lost_batch_may_have_taken_effect() {
    let server = RedisServer::start(&[]).await;
    let (store, proxy) = behind(&server).await;
    let requests = requests();
    proxy.set(Mode::LosesAnswers);
    let claims = claim_all(&store, "unknown", &requests);
    eventually(async || having(&server, "unknown", "claimed").await, |&having| having == CALLERS).await;
    proxy.set(Mode::IsCut);
    let claims = answers(claims).await;
    assert!(claims.iter().all(|claim| matches!(claim, Err(StoreError::Unavailable(_)))), "{claims:?}");
    proxy.set(Mode::Passes);
    let again = async || answers(claim_all(&store, "unknown", &requests)).await;
    let again = eventually(again, |claims| claims.iter().all(Result::is_ok)).await;
    assert!(again.iter().all(is_first_attempt), "the server knows its claims: {again:?}");
    let others = answers(claim_all(&store, "unknown", &super::requests())).await;
    assert!(others.iter().all(|claim| matches!(claim, Ok(Claim::InFlight { .. }))), "{others:?}");
    proxy.set(Mode::LosesAnswers);
    let completions = complete_all(&store, "unknown", &requests, 10);
    eventually(async || having(&server, "unknown", "completed").await, |&having| having == CALLERS).await;
    proxy.set(Mode::IsCut);
    let completed = answers(completions).await;
    assert!(completed.iter().all(|held| matches!(held, Err(StoreError::Unavailable(_)))), "{completed:?}");
    proxy.set(Mode::Passes);
    let again = async || answers(complete_all(&store, "unknown", &requests, 10)).await;
    let again = eventually(again, |completed| completed.iter().all(Result::is_ok)).await;
    assert!(again.iter().all(|held| matches!(held, Ok(Held::Yes))), "{again:?}");
    assert_recorded(&store, "unknown", 10).await;
}

/// The server is killed while it has batches that it has not answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_killed_in_a_batch_claims_and_records_once() {
    let server = RedisServer::start(&["--appendfsync always"]).await;
    let store = connect(&server).await;
    let (held, new) = (requests(), requests());
    assert_claimed(&store, "held", &held).await;
    server.signal("STOP");
    let (claims, completions) = (claim_all(&store, "new", &new), complete_all(&store, "held", &held, 10));
    server.restart().await;
    let first = answers(claims).await;
    let mut acquired: Vec<usize> = first.iter().map(|claim| usize::from(is_first_attempt(claim))).collect();
    answers(completions).await;
    let again = async || answers(complete_all(&store, "held", &held, 10)).await;
    let again = eventually(again, |completed| completed.iter().all(Result::is_ok)).await;
    assert!(again.iter().all(|held| matches!(held, Ok(Held::Yes))), "{again:?}");
    assert_recorded(&store, "held", 10).await;
    // Other requests for the same keys.
    let others = answers(claim_all(&store, "new", &requests())).await;
    for (acquired, claim) in acquired.iter_mut().zip(&others) {
        *acquired += usize::from(is_first_attempt(claim));
    }
    assert!(acquired.iter().all(|&acquired| acquired <= 1), "{acquired:?}");
    assert!(others.iter().all(Result::is_ok), "{others:?}");
}

/// Callers that are gone before their batch goes out have no claim, and the others of the burst get theirs. The release of a claim
/// whose caller is gone keeps it from staying.
#[tokio::test]
async fn cancelled_callers_leave_no_claim_after_their_release() {
    let server = RedisServer::start(&[]).await;
    let store = connect(&server).await;
    let requests = requests();
    let claiming = claim_all(&store, "cancelled", &requests);
    tokio::task::yield_now().await;
    for (number, claim) in claiming.into_iter().enumerate() {
        if number % 2 == 0 {
            claim.abort();
            let _ = claim.await;
        } else {
            assert!(is_first_attempt(&claim.await.expect("the task runs")));
        }
    }
    for number in (0..CALLERS).step_by(2) {
        let _ = store.release(&key("cancelled", number), requests[number].token).await.expect("it releases");
    }
    let left = async || store.list(None, 100).await.expect("it lists").entries.len();
    assert_eq!(eventually(left, |&left| left == CALLERS / 2).await, CALLERS / 2);
    assert!(is_first_attempt(&store.claim(&key("cancelled", 0), claim_request()).await));
}

#[idempotent(scope = "timed-out")]
async fn counted(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

/// The server stands still. A claim that times out in the queue is never sent, and the others are released by their registry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_time_out_in_a_batch_keep_no_key() {
    let redis = RedisServer::start(&[]).await;
    let registry = Registry::builder(connect(&redis).await).store_timeout(Duration::from_millis(500)).build();
    let runs = Runs::free();
    let app = Router::new().route("/", post(counted)).with_state(runs.clone()).layer(registry.layer());
    let server = Server::start(app).await;
    redis.signal("STOP");
    let keys: Vec<_> = (0..CALLERS).map(|n| format!("k{n}")).collect();
    let answered = join_all(keys.iter().map(|key| server.post_with_key("/", key))).await;
    assert!(answered.iter().all(|answer| answer.rejection() == "store_unavailable"), "{answered:?}");
    redis.signal("CONT");
    for key in &keys {
        let retry = async || server.post_with_key("/", key).await;
        eventually(retry, |answer| answer.status.is_success()).await;
        assert!(server.post_with_key("/", key).await.is_replay());
    }
    assert_eq!(runs.started(), CALLERS);
}
