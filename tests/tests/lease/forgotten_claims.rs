//! The store forgets the claim of a running handler: its ttl expires, an operator purges it, or the store fails for
//! longer than the ttl. The key stays claimed in the handler's process, and its response is recorded unless another
//! process took the key.

use std::time::Duration;

use axum::http::StatusCode;
use idempotent_runtime::store::{Held, SqliteStore, Store};
use idempotent_tests::sqlite::{SqliteFile, claim_request};
use idempotent_tests::{Answer, Fault, FaultyStore, Logs, Runs, Server, eventually};
use tokio::task::JoinHandle;

use super::short_leases::{begin, end, key, purge, rejection, serve, serve_within, state};

/// Starts two processes with one store. A handler runs in the first one.
async fn two_processes() -> (Runs, FaultyStore, [Server; 2], JoinHandle<Answer>) {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let servers = [serve(&runs, &store).await, serve(&runs, &store).await];
    let first = begin(&servers[0], "/purged", "tea");
    runs.until_started(1).await;
    (runs, store, servers, first)
}

#[tokio::test]
async fn a_duplicate_of_a_forgotten_claim_is_not_executed() {
    let (runs, store, logs) = (Runs::held(), FaultyStore::new(), Logs::collect());
    let server = serve(&runs, &store).await;
    let first = begin(&server, "/brief", "tea");
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    eventually(async || state(&store, "brief").await, Option::is_none).await;

    assert_eq!(rejection(&server, "/brief", "ham", &runs).await, "key_reused");
    assert_eq!(rejection(&server, "/brief", "tea", &runs).await, "in_flight");
    assert!(
        logs.of_level("WARN").iter().any(|line| line.contains("the handler keeps its key")),
        "{:?}",
        logs.of_level("WARN")
    );
    runs.let_finish(1);
    assert_eq!(end(first).await.text(), "tea of attempt 1");
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn a_claim_outlives_a_lease_as_long_as_its_ttl() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let (server, another_process) = (serve(&runs, &store).await, serve(&runs, &store).await);
    let first = begin(&server, "/brief", "tea");
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    let second = loop {
        let mut second = begin(&another_process, "/brief", "tea");
        tokio::select! {
            answer = &mut second => assert_eq!(answer.expect("the request runs").rejection(), "in_flight"),
            () = runs.until_started(2) => break second,
        }
    };
    store.on_renew(Fault::None);
    runs.let_finish(2);
    assert_eq!(end(first).await.rejection(), "claim_lost");
    assert_eq!(end(second).await.text(), "tea of attempt 2", "the claim was remembered when its lease was over");
}

#[tokio::test]
async fn an_outage_longer_than_the_ttl_executes_nothing_twice() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = serve(&runs, &store).await;
    let first = begin(&server, "/outage", "tea");
    runs.until_started(1).await;
    for set in [FaultyStore::on_claim, FaultyStore::on_renew, FaultyStore::on_complete] {
        set(&store, Fault::Unreachable);
    }
    eventually(async || state(&store, "outage").await, Option::is_none).await;
    store.on_claim(Fault::None);
    assert_eq!(rejection(&server, "/outage", "tea", &runs).await, "in_flight");
    store.on_renew(Fault::None);
    store.on_complete(Fault::None);
    runs.let_finish(1);
    assert_eq!(end(first).await.text(), "tea of attempt 1");
    let retry = end(begin(&server, "/outage", "tea")).await;
    assert_eq!((retry.text(), retry.is_replay(), runs.started()), ("tea of attempt 1", true, 1));
}

#[tokio::test]
async fn a_blocking_handler_without_successor_is_recorded() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let server = serve(&runs, &store).await;
    let first = end(begin(&server, "/blocks", "tea")).await;
    assert_eq!((first.status, first.text()), (StatusCode::CREATED, "tea of attempt 1"));
}

#[tokio::test]
async fn a_purged_key_is_claimed_again_by_its_handler() {
    let (runs, store, [_server, another_process], first) = two_processes().await;
    purge(&store, "purged").await;
    eventually(async || state(&store, "purged").await, Option::is_some).await;

    assert_eq!(rejection(&another_process, "/purged", "tea", &runs).await, "in_flight");
    runs.let_finish(1);
    assert_eq!(end(first).await.text(), "tea of attempt 1");
    assert!(end(begin(&another_process, "/purged", "tea")).await.is_replay());
}

#[tokio::test]
async fn a_purged_key_stays_claimed_in_its_process() {
    for other in ["tea", "ham"] {
        let (runs, store, [server, another_process], first) = two_processes().await;
        store.on_renew(Fault::Unreachable);
        purge(&store, "purged").await;

        let expected = if other == "tea" { "in_flight" } else { "key_reused" };
        assert_eq!(rejection(&server, "/purged", other, &runs).await, expected);
        assert_eq!(rejection(&server, "/purged", "tea", &runs).await, "in_flight");
        runs.let_finish(1);
        assert_eq!(end(first).await.text(), "tea of attempt 1");
        for process in [&server, &another_process] {
            assert!(end(begin(process, "/purged", "tea")).await.is_replay());
            assert_eq!(rejection(process, "/purged", "ham", &runs).await, "key_reused");
        }
    }
}

#[tokio::test]
async fn a_key_reused_after_a_purge_stays_with_its_first_request() {
    let (runs, store, [server, another_process], first) = two_processes().await;
    purge(&store, "purged").await;
    assert_eq!(rejection(&server, "/purged", "ham", &runs).await, "key_reused");

    // In the store, the key belongs to the request of the handler again.
    let tea_elsewhere = async || rejection(&another_process, "/purged", "tea", &runs).await;
    eventually(tea_elsewhere, |rejection| rejection == "in_flight").await;
    assert_eq!(rejection(&another_process, "/purged", "ham", &runs).await, "key_reused");
    runs.let_finish(1);
    assert_eq!(end(first).await.text(), "tea of attempt 1");
}

#[tokio::test]
async fn a_purged_key_that_another_process_took_is_lost() {
    for other in ["tea", "ham"] {
        let (runs, store, [server, another_process], first) = two_processes().await;
        store.on_renew(Fault::Unreachable);
        purge(&store, "purged").await;
        let second = begin(&another_process, "/purged", other);
        runs.until_started(2).await;
        store.on_renew(Fault::None);
        assert_eq!(rejection(&server, "/purged", "tea", &runs).await, "in_flight");

        runs.let_finish(2);
        assert_eq!(end(first).await.rejection(), "claim_lost");
        let second = end(second).await;
        assert_eq!((second.status, second.text().starts_with(other)), (StatusCode::CREATED, true));
        let retry = end(begin(&server, "/purged", other)).await;
        assert_eq!((retry.text(), retry.is_replay(), runs.started()), (second.text(), true, 2));
    }
}

/// The claim of a running handler is forgotten, and a duplicate in its process has got the key without knowing it yet.
async fn forgotten_and_taken(scope: &str, other: &'static str) -> (Runs, FaultyStore, Server, [JoinHandle<Answer>; 2]) {
    let (runs, store, path) = (Runs::held(), FaultyStore::new(), format!("/{scope}"));
    let server = serve_within(Duration::from_secs(10), &runs, &store).await;
    let first = begin(&server, &path, "tea");
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    purge(&store, scope).await;
    store.on_claim(Fault::AnswerIsLate);
    let duplicate = begin(&server, &path, other);
    eventually(async || state(&store, scope).await, Option::is_some).await;
    store.on_claim(Fault::None);
    store.on_renew(Fault::None);
    (runs, store, server, [first, duplicate])
}

#[tokio::test]
async fn an_end_waits_for_a_duplicate_that_got_its_key() {
    for (other, expected) in [("tea", "in_flight"), ("ham", "key_reused")] {
        let (runs, store, server, [first, duplicate]) = forgotten_and_taken("purged", other).await;
        runs.let_finish(1);
        eventually(async || store.completions(), |completions| *completions > 0).await;
        store.let_through();
        tokio::select! {
            duplicate = end(duplicate) => assert_eq!(duplicate.rejection(), expected),
            () = runs.until_started(2) => panic!("{other} is executed beside tea"),
        }
        assert_eq!(end(first).await.text(), "tea of attempt 1");
        assert!(end(begin(&server, "/purged", "tea")).await.is_replay());
    }
}

#[tokio::test]
async fn an_unknown_outcome_waits_for_a_duplicate_with_its_key() {
    let (runs, store, server, [first, duplicate]) = forgotten_and_taken("panics", "tea").await;
    runs.let_finish(1);
    eventually(async || store.ends(), |ends| *ends > 0).await;
    store.let_through();
    tokio::select! {
        duplicate = end(duplicate) => assert_eq!(duplicate.rejection(), "in_flight"),
        () = runs.until_started(2) => panic!("it is executed again"),
    }
    assert_eq!(end(first).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(rejection(&server, "/panics", "tea", &runs).await, "outcome_unknown");
}

#[tokio::test]
async fn a_renewal_after_a_lost_end_leaves_no_claim() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = serve_within(Duration::from_secs(10), &runs, &store).await;
    let first = begin(&server, "/purged", "tea");
    runs.until_started(1).await;
    let claims = store.claims();
    store.on_claim(Fault::ArrivesLate);
    purge(&store, "purged").await;
    eventually(async || store.claims(), |more| *more > claims).await;
    store.on_claim(Fault::None);

    // Another process gets the key, and releases it after the handler's end.
    let other = claim_request();
    store.inner().claim(&key("purged"), other).await.expect("the store answers");
    runs.let_finish(1);
    assert_eq!(end(first).await.rejection(), "claim_lost");
    assert_eq!(store.inner().release(&key("purged"), other.token).await.expect("the store answers"), Held::Yes);
    store.let_through();
    eventually(async || store.ends(), |ends| *ends > 0).await;
    assert_eq!(state(&store, "purged").await, None);
}

#[tokio::test]
async fn a_panic_after_a_purge_is_not_forgotten_under_reject() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = serve(&runs, &store).await;
    let first = begin(&server, "/panics", "");
    runs.until_started(1).await;
    purge(&store, "panics").await;
    runs.let_finish(1);
    assert_eq!(end(first).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(rejection(&server, "/panics", "", &runs).await, "outcome_unknown");
}

#[tokio::test]
async fn a_failure_after_a_purge_frees_the_key() {
    let (runs, store, logs) = (Runs::held(), FaultyStore::new(), Logs::collect());
    let server = serve(&runs, &store).await;
    let first = begin(&server, "/fails", "");
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    purge(&store, "fails").await;
    runs.let_finish(2);
    assert_eq!(end(first).await.text(), "attempt 1");
    assert_eq!(end(begin(&server, "/fails", "")).await.text(), "attempt 1");
    assert!(logs.of_level("ERROR").is_empty(), "no claim was lost: {:?}", logs.of_level("ERROR"));
}

#[tokio::test]
async fn on_store_error_run_does_not_run_beside_another_request() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = serve(&runs, &store).await;
    let first = begin(&server, "/unguarded", "tea");
    runs.until_started(1).await;
    store.on_claim(Fault::Unreachable);
    store.on_get(Fault::Unreachable);
    assert_eq!(rejection(&server, "/unguarded", "ham", &runs).await, "key_reused");
    assert_eq!(rejection(&server, "/unguarded", "tea", &runs).await, "store_unavailable");
    runs.let_finish(1);
    assert_eq!(end(first).await.text(), "tea of attempt 1");
}

#[tokio::test]
async fn a_tx_handler_does_not_run_beside_a_forgotten_claim() {
    let (runs, file) = (Runs::held(), SqliteFile::new());
    let store = FaultyStore::around(SqliteStore::open(file.path()).await.expect("the file can be opened"));
    let server = serve(&runs, &store).await;
    let first = begin(&server, "/plain", "");
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    purge(&store, "both").await;
    // The path is part of the fingerprint.
    assert_eq!(rejection(&server, "/in-transaction", "", &runs).await, "key_reused");
    runs.let_finish(1);
    assert_eq!(end(first).await.status, StatusCode::OK);
}
