//! Every lease that is kept is renewed, whatever the renewer's task is doing at that time.

use std::sync::Arc;
use std::time::Duration;

use crate::concurrency_tests::clock;
use crate::concurrency_tests::explore::schedules;
use crate::concurrency_tests::fixtures::{CountingStore, LEASE, TTL, claim_request, record, record_key};
use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::lease::renewer::KeptLease;
use crate::lease::renewer::LeaseRenewer;
use crate::lease::state::{Lease, NewClaim, RunningHandler};
use crate::policy::scope::Scope;
use crate::policy::values::AfterCrash;
use crate::store::claim::{Claim, ClaimRequest, Held};
use crate::store::contract::{Store as _, StoreAdmin};
use crate::store::handle::StoreHandle;
use crate::sync::tokio;
use crate::sync::tokio::task::JoinHandle;
use crate::sync::tokio::time::Instant;

async fn lease(store: &CountingStore, key: &RecordKey, length: Duration) -> Lease {
    let request = ClaimRequest { lease: length, ..claim_request() };
    let claimed = store.claim(key, request).await.expect("there is room");
    assert_eq!(claimed, Claim::Acquired { attempt: 1 });
    // Time does not advance while a store answers, and then jumps: a limit would be exceeded without any delay.
    let handle = StoreHandle::new("default", Arc::new(store.clone()), Duration::MAX);
    Lease::new(handle, key.clone(), &request, Scope::Handler("charges"), Instant::now())
}

/// Keeps a lease as the engine does.
#[expect(clippy::unused_async, reason = "it is called where others await")]
async fn keep(renewer: &Arc<LeaseRenewer>, lease: Lease) -> KeptLease {
    renewer.keep(lease)
}

/// Checks two renewals, each when a third of the length is over.
///
/// Time advances only when the call of the first one has ended. Otherwise, with jumps of 10 s and a limit of 12.5 s:
///   at 10 s the renewer calls, and the store has not answered yet
///   at 20 s the store renews; its answer is on its way
///   at 30 s the call is over its limit: the renewer tries again in 3 s, and time does not advance any more
///   at 30 s the call is over its limit: the renewer asks again in 3 s, and no time goes on any more
async fn assert_is_renewed(store: &CountingStore, key: &RecordKey, length: Duration) {
    for times in 1..=2 {
        clock::advance(length / 3);
        store.until_renewed(key, times).await;
    }
    let other = ClaimRequest { lease: length, ..claim_request() };
    let claimed = store.claim(key, other).await.expect("there is room");
    assert!(matches!(claimed, Claim::InFlight { .. }), "{claimed:?}");
}

// The renewer's task ends when it has nothing to renew. If it did not note this under the lock of the leases:
//   the task finds no lease
//   B is entered, and finds a task that is not finished: it spawns none
//   the task ends: B is never renewed, and another request takes its key over while it runs
#[test]
fn a_lease_that_is_entered_while_the_task_ends_is_renewed() {
    schedules(4_000, async || {
        let (renewer, store) = (Arc::<LeaseRenewer>::default(), CountingStore::default());
        let (first, second) = (record_key("first"), record_key("second"));
        let kept = keep(&renewer, lease(&store, &first, LEASE).await).await;
        let waiting = lease(&store, &second, LEASE).await;
        let ending = tokio::spawn(async {
            drop(kept);
            clock::advance(LEASE / 3);
        });
        let kept = keep(&renewer, waiting).await;
        ending.await.expect("the task is not aborted");
        assert_is_renewed(&store, &second, LEASE).await;
        drop(kept);
    });
}

// The task sleeps until the next lease that it knows. Without the permit of `Notify`, this could happen:
//   the task reads when the long lease is due
//   the short lease is entered, and notifies: the task has not subscribed yet
//   the task goes to sleep, past the end of the short lease
#[test]
fn shorter_lease_wakes_the_renewer_before_its_long_sleep() {
    schedules(4_000, async || {
        let (renewer, store) = (Arc::<LeaseRenewer>::default(), CountingStore::default());
        let (long, short) = (record_key("long"), record_key("short"));
        let (long, waiting) = (lease(&store, &long, 10 * LEASE).await, lease(&store, &short, LEASE).await);
        let entering = {
            let renewer = Arc::clone(&renewer);
            tokio::spawn(async move { keep(&renewer, long).await })
        };
        let kept = keep(&renewer, waiting).await;
        let long = entering.await.expect("the task is not aborted");
        assert_is_renewed(&store, &short, LEASE).await;
        drop((kept, long));
    });
}

// Leases that are dropped must remove only their own places in the schedule, however many there are.
#[test]
fn a_lease_among_many_that_come_and_go_is_renewed() {
    schedules(40, async || {
        let (renewer, store) = (Arc::<LeaseRenewer>::default(), CountingStore::default());
        let (long, last) = (record_key("long"), record_key("last"));
        let kept = keep(&renewer, lease(&store, &long, LEASE).await).await;
        for number in 0..100 {
            let passing = record_key(&number.to_string());
            drop(keep(&renewer, lease(&store, &passing, LEASE).await).await);
        }
        let kept_last = keep(&renewer, lease(&store, &last, 2 * LEASE).await).await;
        assert_is_renewed(&store, &long, LEASE).await;
        assert_is_renewed(&store, &last, 2 * LEASE).await;
        drop((kept, kept_last));
    });
}

/// Sends a request in the handler's own process. Returns whether its claim went to the handler; `None` if it got no
/// claim.
fn duplicate(
    renewer: &Arc<LeaseRenewer>,
    store: &CountingStore,
    running: &StoreHandle,
    key: &RecordKey,
    request: ClaimRequest,
) -> JoinHandle<Option<bool>> {
    let (renewer, store, key, running) = (Arc::clone(renewer), store.clone(), key.clone(), running.clone());
    tokio::spawn(async move {
        let asked_at = Instant::now();
        let _pending = renewer.asks(&key);
        let Claim::Acquired { attempt } = store.claim(&key, request).await.expect("there is room") else {
            return None;
        };
        let new_claim = NewClaim { request: &request, attempt, asked_at };
        let running = renewer.hand_over(&running, &key, &new_claim, |fingerprint| fingerprint == request.fingerprint);
        let of_handler = claim_request().fingerprint;
        let is_same = request.fingerprint == of_handler;
        let expected = if is_same { RunningHandler::SameRequest } else { RunningHandler::AnotherRequest(of_handler) };
        assert!(running.is_none_or(|running| running == expected), "{running:?}");
        Some(running.is_some())
    })
}

// A duplicate takes over the claim of a handler of its own process while the handler ends. Without the loop around the
// end, and the last decision under the lock of the token, this could happen:
//   the duplicate takes the claim over
//   the handler completes under its own token: the store rejects
//   the duplicate hands the claim back: its request waits for a handler that has ended, and the claim stays
#[test]
fn a_claim_that_is_handed_back_is_ended_by_its_handler() {
    schedules(4_000, async || {
        let (renewer, store, key) = (Arc::<LeaseRenewer>::default(), CountingStore::default(), record_key("k"));
        let kept = keep(&renewer, lease(&store, &key, LEASE).await).await;
        let running = kept.store.clone();
        clock::advance(LEASE);
        let duplicate = duplicate(&renewer, &store, &running, &key, claim_request());
        let ended = kept.end(|token| running.complete(&key, token, record("charge 1"), TTL)).await.expect("it answers");
        // The claim was renewed or completed before the duplicate's claim, or it was handed back.
        assert_ne!(duplicate.await.expect("the task is not aborted"), Some(false));
        assert_eq!(ended, Held::Yes);
    });
}

/// Checks that the key has the record that its handler was to make.
async fn assert_is_recorded(store: &CountingStore, key: &RecordKey) {
    let claimed = store.claim(key, claim_request()).await.expect("there is room");
    assert_eq!(claimed, Claim::Completed(record("charge 1")));
}

// The store has forgotten the claim of a handler that ends, while its renewal is due and a request of the same process
// claims the key, with the same or another content. Three things prevent the steps below: the handler is looked up
// before a claim is accepted, the handler waits for the store's answers to such requests, and it makes a new claim
// itself.
//   the other request gets the claim, and runs beside the handler
//   the handler completes: the store does not know the token, and the response is lost although no other attempt took
//     its place
#[test]
fn a_forgotten_claim_goes_to_its_handler() {
    for seed in [7, 8] {
        let test = move || async move {
            let (renewer, store, key) = (Arc::<LeaseRenewer>::default(), CountingStore::default(), record_key("k"));
            let kept = keep(&renewer, lease(&store, &key, LEASE).await).await;
            let running = kept.store.clone();
            assert!(store.purge(&key).await.expect("memory answers"));
            clock::advance(LEASE / 3);
            let request = ClaimRequest { fingerprint: Fingerprint::from_bytes([seed; 32]), ..claim_request() };
            let duplicate = duplicate(&renewer, &store, &running, &key, request);
            let complete = |token| running.complete(&key, token, record("charge 1"), TTL);
            let ended = kept.end(complete).await.expect("it answers");
            assert_ne!(duplicate.await.expect("the task is not aborted"), Some(false));
            assert_eq!(ended, Held::Yes);
            assert_is_recorded(&store, &key).await;
        };
        schedules(3_000, test);
    }
}

// The same, if the handler's outcome is unknown and its request may not run again. Waiting for the answers prevents:
//   the duplicate gets the claim
//   the handler finds its key taken, and ends
//   the duplicate runs
#[test]
fn an_unknown_outcome_that_was_forgotten_has_no_successor() {
    schedules(3_000, async || {
        let (renewer, store, key) = (Arc::<LeaseRenewer>::default(), CountingStore::default(), record_key("k"));
        let kept = keep(&renewer, lease(&store, &key, LEASE).await).await;
        let running = kept.store.clone();
        assert!(store.purge(&key).await.expect("memory answers"));
        let request = ClaimRequest { after_crash: AfterCrash::Reject, ..claim_request() };
        let duplicate = duplicate(&renewer, &store, &running, &key, request);
        assert_eq!(kept.lapse().await.expect("it answers"), Held::Yes);
        assert_ne!(duplicate.await.expect("the task is not aborted"), Some(false));
    });
}

// The same, while another process claims the key. If the handler did not claim with its own token, this could happen:
//   the other process claims the key, and runs
//   the handler claims it too: two responses for one key
#[test]
fn of_a_forgotten_claim_and_another_process_one_records() {
    schedules(3_000, async || {
        let (renewer, store, key) = (Arc::<LeaseRenewer>::default(), CountingStore::default(), record_key("k"));
        let kept = keep(&renewer, lease(&store, &key, LEASE).await).await;
        let running = kept.store.clone();
        assert!(store.purge(&key).await.expect("memory answers"));
        clock::advance(LEASE / 3);
        let other = {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move { store.claim(&key, claim_request()).await.expect("there is room") })
        };
        let complete = |token| running.complete(&key, token, record("charge 1"), TTL);
        let ended = kept.end(complete).await.expect("it answers");
        let is_followed = matches!(other.await.expect("the task is not aborted"), Claim::Acquired { .. });
        assert_ne!(ended == Held::Yes, is_followed);
    });
}

// The store has forgotten the claim of a handler whose response will not be recorded, while its renewal is due. If
// renewals were not held up until the end, this could happen:
//   the renewal finds nothing
//   the handler ends: there is nothing to release
//   the renewal claims the key again, without a handler
#[test]
fn no_renewal_claims_a_released_key_anew() {
    schedules(3_000, async || {
        let (renewer, store, key) = (Arc::<LeaseRenewer>::default(), CountingStore::default(), record_key("k"));
        let kept = keep(&renewer, lease(&store, &key, LEASE).await).await;
        assert!(store.purge(&key).await.expect("memory answers"));
        let passing = tokio::spawn(async { clock::advance(LEASE / 3) });
        kept.has_changed_hands_for_good();
        let _held = kept.release().await.expect("it answers");
        passing.await.expect("the task is not aborted");
        drop(kept);
        assert_eq!(store.get(&key).await.expect("memory answers"), None);
    });
}
