//! The connection to the store is cut until the lease expires: the response is late, and the key has one success.

use axum::http::StatusCode;
use idempotent_runtime::store::{EntryState, MemoryStore};
use idempotent_tests::{Fault, FaultyStore, Logs, Runs, Server, eventually};

use super::short_leases::{begin, end, rejection, serve, state};

/// Starts two processes, each with its own connection to the same store.
async fn two_lines(runs: &Runs) -> ([FaultyStore; 2], [Server; 2]) {
    let memory = MemoryStore::new();
    let stores = [FaultyStore::around(memory.clone()), FaultyStore::around(memory)];
    let servers = [serve(runs, &stores[0]).await, serve(runs, &stores[1]).await];
    (stores, servers)
}

fn cut(store: &FaultyStore) {
    for set in [FaultyStore::on_claim, FaultyStore::on_renew, FaultyStore::on_complete] {
        set(store, Fault::Unreachable);
    }
}

fn restore(store: &FaultyStore) {
    for set in [FaultyStore::on_claim, FaultyStore::on_renew, FaultyStore::on_complete] {
        set(store, Fault::None);
    }
}

async fn until_the_lease_is_over(store: &FaultyStore, scope: &str) {
    let is_over = async || matches!(state(store, scope).await, Some(EntryState::Claimed { lease: None, .. }));
    eventually(is_over, |over| *over).await;
}

#[tokio::test]
async fn a_response_after_its_lease_is_no_second_success() {
    let runs = Runs::held();
    let (stores, [cut_off, other]) = two_lines(&runs).await;
    let first = begin(&cut_off, "/purged", "tea");
    runs.until_started(1).await;
    cut(&stores[0]);
    until_the_lease_is_over(&stores[0], "purged").await;
    let second = begin(&other, "/purged", "tea");
    runs.until_started(2).await;

    runs.let_finish(2);
    let second = end(second).await;
    assert_eq!(second.text(), "tea of attempt 2");
    let first = end(first).await;
    assert_eq!(
        (first.status, first.rejection().as_str()),
        (StatusCode::CONFLICT, "claim_lost"),
        "one key has one success"
    );
    assert_eq!(first.headers["retry-after"], "1");
    restore(&stores[0]);
    let retry = end(begin(&cut_off, "/purged", "tea")).await;
    assert_eq!((retry.text(), retry.is_replay(), runs.started()), (second.text(), true, 2));
}

#[tokio::test]
async fn a_response_after_its_lease_is_recorded_for_the_retry() {
    let (runs, logs) = (Runs::held(), Logs::collect());
    let (stores, [cut_off, other]) = two_lines(&runs).await;
    let first = begin(&cut_off, "/purged", "tea");
    runs.until_started(1).await;
    cut(&stores[0]);
    until_the_lease_is_over(&stores[0], "purged").await;
    runs.let_finish(1);
    let first = end(first).await;
    assert_eq!((first.status, first.rejection().as_str()), (StatusCode::CONFLICT, "claim_lost"));
    assert!(
        logs.of_level("ERROR").iter().any(|line| line.contains("its lease has expired")),
        "{:?}",
        logs.of_level("ERROR")
    );

    restore(&stores[0]);
    let is_recorded = async || matches!(state(&stores[0], "purged").await, Some(EntryState::Completed { .. }));
    eventually(is_recorded, |recorded| *recorded).await;
    for process in [&cut_off, &other] {
        let retry = end(begin(process, "/purged", "tea")).await;
        assert_eq!((retry.text(), retry.is_replay(), runs.started()), ("tea of attempt 1", true, 1));
    }
}

/// The connection to the store is cut before the response is recorded. The client gets the response before the lease
/// ends. Returns after the end of the lease.
async fn sent_before_the_lease_was_over(runs: &Runs, scope: &str) -> ([FaultyStore; 2], [Server; 2]) {
    let (stores, [cut_off, other]) = two_lines(runs).await;
    let first = begin(&cut_off, &format!("/{scope}"), "tea");
    runs.until_started(1).await;
    cut(&stores[0]);
    runs.let_finish(1);
    assert_eq!(end(first).await.text(), "tea of attempt 1");
    until_the_lease_is_over(&stores[0], scope).await;
    (stores, [cut_off, other])
}

#[tokio::test]
async fn a_sent_response_gets_a_second_one_after_a_longer_outage() {
    let runs = Runs::held();
    let (stores, [cut_off, other]) = sent_before_the_lease_was_over(&runs, "sent").await;
    runs.let_finish(1);
    let second = end(begin(&other, "/sent", "tea")).await;
    assert_eq!((second.text(), second.is_replay()), ("tea of attempt 2", false));
    restore(&stores[0]);
    for process in [&cut_off, &other] {
        assert_eq!(end(begin(process, "/sent", "tea")).await.text(), "tea of attempt 2");
    }
    assert_eq!(runs.started(), 2);
}

#[tokio::test]
async fn a_sent_response_is_unknown_until_recorded_under_reject() {
    let runs = Runs::held();
    let (stores, [cut_off, other]) = sent_before_the_lease_was_over(&runs, "sent-once").await;
    assert_eq!(rejection(&other, "/sent-once", "tea", &runs).await, "outcome_unknown");
    restore(&stores[0]);
    let is_recorded = async || matches!(state(&stores[0], "sent-once").await, Some(EntryState::Completed { .. }));
    eventually(is_recorded, |recorded| *recorded).await;
    for process in [&cut_off, &other] {
        assert_eq!(end(begin(process, "/sent-once", "tea")).await.text(), "tea of attempt 1");
    }
    assert_eq!(runs.started(), 1);
}
