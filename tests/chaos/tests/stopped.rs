//! A process that is stopped for longer than its lease and then continues: its late writes are rejected, and its client
//! gets the right answer. Also a store that is demoted or cut off: every process serves again soon.

use std::sync::Arc;
use std::time::Duration;

use chaos::history::{Answer, Guarantee};
use chaos::run::{Outage, Plan, Stage, StoreKind, play_outages};
use chaos::server::Order;
use idempotent_tests::eventually;
use tokio::task::JoinHandle;

/// Long enough to be stopped meanwhile, and shorter than a lease.
const ORDER: Order = Order::taking(700);
const KEY: &str = "stopped";

async fn post(stage: &Stage, server: usize, guarantee: Guarantee) -> Answer {
    let client = reqwest::Client::builder().retry(reqwest::retry::never()).build().expect("a client");
    let url = format!("http://{}{}", stage.fleet.server(server).address, guarantee.path());
    let response = client.post(url).header("idempotency-key", KEY).json(&ORDER).send().await.expect("it answers");
    let (status, is_replay) = (response.status().as_u16(), response.headers().contains_key("idempotent-replayed"));
    Answer { status, body: response.text().await.expect("a whole answer"), is_replay }
}

/// Starts two servers. The first one is stopped in the middle of its handler.
async fn stop_one_in_its_handler(store: StoreKind, guarantee: Guarantee) -> (Arc<Stage>, JoinHandle<Answer>) {
    let plan = Plan::calm(0, Duration::ZERO, store, 2);
    let stage = Arc::new(Stage::set(&plan, env!("CARGO_BIN_EXE_chaos").into()).await.expect("the servers start"));
    let first = tokio::spawn({
        let stage = Arc::clone(&stage);
        async move { post(&stage, 0, guarantee).await }
    });
    eventually(async || executions(&stage).await, |&count| count == 1).await;
    stage.fleet.stop_server(0);
    (stage, first)
}

async fn executions(stage: &Stage) -> usize {
    stage.history().await.expect("the ledger is read").executions.len()
}

async fn effects(stage: &Stage) -> usize {
    stage.history().await.expect("the ledger is read").effects.len()
}

/// The other server's answer once the lease has expired.
async fn once_the_lease_is_over(stage: &Stage, guarantee: Guarantee) -> Answer {
    let ask = async || post(stage, 1, guarantee).await;
    eventually(ask, |answer| answer.code().as_deref() != Some("in_flight")).await
}

async fn at_least_once(store: StoreKind) {
    let (stage, first) = stop_one_in_its_handler(store, Guarantee::AtLeastOnce).await;
    let second = once_the_lease_is_over(&stage, Guarantee::AtLeastOnce).await;
    assert_eq!(second.receipt().expect("it is done").attempt, 2);
    stage.fleet.continue_server(0);
    let first = first.await.expect("the client gets an answer");
    assert_eq!((first.status, first.code().as_deref()), (409, Some("claim_lost")), "{first}");
    for server in [0, 1] {
        let retry = post(&stage, server, Guarantee::AtLeastOnce).await;
        assert!(retry.is_replay);
        assert_eq!(retry.body, second.body, "the late completion has changed nothing");
    }
    assert_eq!((executions(&stage).await, effects(&stage).await), (2, 2));
}

async fn at_most_once(store: StoreKind) {
    let (stage, first) = stop_one_in_its_handler(store, Guarantee::AtMostOnce).await;
    let second = once_the_lease_is_over(&stage, Guarantee::AtMostOnce).await;
    assert_eq!(second.code().as_deref(), Some("outcome_unknown"), "{second}");
    stage.fleet.continue_server(0);
    let first = first.await.expect("the client gets an answer");
    assert!(first.receipt().is_some(), "no process has taken its claim: {first}");
    let retry = post(&stage, 1, Guarantee::AtMostOnce).await;
    assert!(retry.is_replay, "the outcome is known now");
    assert_eq!(retry.body, first.body);
    assert_eq!((executions(&stage).await, effects(&stage).await), (1, 1));
}

async fn exactly_once(store: StoreKind) {
    let (stage, first) = stop_one_in_its_handler(store, Guarantee::ExactlyOnce).await;
    // The transaction stays open as long as its process lives: there is no lease that could expire.
    let second = post(&stage, 1, Guarantee::ExactlyOnce).await;
    let rejected = second.code().expect("it is rejected");
    assert!(["in_flight", "store_unavailable"].contains(&rejected.as_str()), "{second}");
    stage.fleet.continue_server(0);
    let first = first.await.expect("the client gets an answer");
    assert_eq!(first.receipt().expect("it is done").attempt, 1);
    let ask = async || post(&stage, 1, Guarantee::ExactlyOnce).await;
    let retry = eventually(ask, |answer| answer.code().is_none()).await;
    assert!(retry.is_replay);
    assert_eq!(retry.body, first.body);
    assert_eq!((executions(&stage).await, effects(&stage).await), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_process_loses_its_claim_over_sqlite() {
    at_least_once(StoreKind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_process_loses_its_claim_over_redis() {
    at_least_once(StoreKind::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_process_loses_its_claim_over_postgres() {
    at_least_once(StoreKind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_at_most_once_process_ends_its_claim_over_sqlite() {
    at_most_once(StoreKind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_at_most_once_process_ends_its_claim_over_redis() {
    at_most_once(StoreKind::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_at_most_once_process_ends_its_claim_over_postgres() {
    at_most_once(StoreKind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_transaction_keeps_its_key_over_sqlite() {
    exactly_once(StoreKind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_transaction_keeps_its_key_over_postgres() {
    exactly_once(StoreKind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demoted_or_cut_off_redis_is_served_again_soon() {
    let outages = [Outage::Demote, Outage::BlackHole];
    let program = env!("CARGO_BIN_EXE_chaos").into();
    let outcome = play_outages(1, StoreKind::Redis, &outages, 2, program).await.expect("the servers start");
    assert!(outcome.violations.is_empty(), "{}", outcome.report());
    assert!(outcome.are_short(), "{outcome}");
}
