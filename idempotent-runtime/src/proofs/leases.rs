//! Every lease that is kept is renewed, whatever the keeper's task was about to do.

use std::sync::Arc;
use std::time::Duration;

use super::clock;
use super::explore::schedules;
use super::fixtures::{CountingStore, LEASE, TTL, claim_request, record, record_key};
use crate::RecordKey;
use crate::lease::{Keeper, KeptLease, Lease};
use crate::store::{BoundedStore, Claim, ClaimRequest, Held, Store as _};
use crate::sync::tokio;
use crate::sync::tokio::time::Instant;

async fn lease(store: &CountingStore, key: &RecordKey, length: Duration) -> Lease {
    let request = ClaimRequest { lease: length, ..claim_request() };
    let claimed = store.claim(key, request).await.expect("there is room");
    assert_eq!(claimed, Claim::Acquired { attempt: 1 });
    let bounded = BoundedStore::new("default", Arc::new(store.clone()), Duration::from_secs(2));
    Lease::new(bounded, key.clone(), &request, "charges")
}

/// As the engine keeps a lease.
async fn keep(keeper: &Arc<Keeper>, lease: Lease) -> KeptLease {
    let (kept, has_woken_keeper) = keeper.keep(lease, Instant::now());
    if has_woken_keeper {
        Keeper::let_it_run().await;
    }
    kept
}

/// Two renewals, each when a third of the length is over.
async fn assert_is_renewed(store: &CountingStore, key: &RecordKey, length: Duration) {
    for times in 1..=2 {
        clock::advance(length / 3);
        store.until_renewed(key, times).await;
    }
    let other = ClaimRequest { lease: length, ..claim_request() };
    let claimed = store.claim(key, other).await.expect("there is room");
    assert!(matches!(claimed, Claim::InFlight { .. }), "{claimed:?}");
}

// The keeper's task ends when it has nothing to renew. What saying so under the lock of the leases forbids:
//   the task finds no lease
//   B is entered, and finds a task that is not finished: it spawns none
//   the task ends: B is never renewed, and another request takes its key over while it runs
#[test]
fn a_lease_that_is_entered_while_the_task_ends_is_renewed() {
    schedules(4_000, async || {
        let (keeper, store) = (Arc::<Keeper>::default(), CountingStore::default());
        let (first, second) = (record_key("first"), record_key("second"));
        let kept = keep(&keeper, lease(&store, &first, LEASE).await).await;
        let waiting = lease(&store, &second, LEASE).await;
        let ending = tokio::spawn(async {
            drop(kept);
            clock::advance(LEASE / 3);
        });
        let kept = keep(&keeper, waiting).await;
        ending.await.expect("the task is not aborted");
        assert_is_renewed(&store, &second, LEASE).await;
        drop(kept);
    });
}

// The task sleeps until the next lease that it knows of. What a permit of the bell forbids:
//   the task reads when the long lease is due
//   the short lease is entered, and rings: nobody listens
//   the task goes to sleep, past the end of the short lease
#[test]
fn a_shorter_lease_wakes_the_keeper_that_is_about_to_sleep_longer() {
    schedules(4_000, async || {
        let (keeper, store) = (Arc::<Keeper>::default(), CountingStore::default());
        let (long, short) = (record_key("long"), record_key("short"));
        let (long, waiting) = (lease(&store, &long, 10 * LEASE).await, lease(&store, &short, LEASE).await);
        let entering = {
            let keeper = Arc::clone(&keeper);
            tokio::spawn(async move { keep(&keeper, long).await })
        };
        let kept = keep(&keeper, waiting).await;
        let long = entering.await.expect("the task is not aborted");
        assert_is_renewed(&store, &short, LEASE).await;
        drop((kept, long));
    });
}

// Those that pass must take nothing with them but their own places, however many there are.
#[test]
fn a_lease_among_many_that_come_and_go_is_renewed() {
    schedules(40, async || {
        let (keeper, store) = (Arc::<Keeper>::default(), CountingStore::default());
        let (long, last) = (record_key("long"), record_key("last"));
        let kept = keep(&keeper, lease(&store, &long, LEASE).await).await;
        for number in 0..100 {
            let passing = record_key(&number.to_string());
            drop(keep(&keeper, lease(&store, &passing, LEASE).await).await);
        }
        let kept_last = keep(&keeper, lease(&store, &last, 2 * LEASE).await).await;
        assert_is_renewed(&store, &long, LEASE).await;
        assert_is_renewed(&store, &last, 2 * LEASE).await;
        drop((kept, kept_last));
    });
}

// A duplicate takes over the claim of a handler that runs in its own process, while that ends. What the loop around the end
// and its last word under the lock of the token forbid:
//   the duplicate takes the claim over
//   the handler completes under its own token: the store refuses
//   the duplicate hands the claim back: its request waits for a handler that has given up, and nobody ends the claim
#[test]
fn a_claim_that_is_handed_back_is_ended_by_its_handler() {
    schedules(4_000, async || {
        let (keeper, store, key) = (Arc::<Keeper>::default(), CountingStore::default(), record_key("k"));
        let kept = keep(&keeper, lease(&store, &key, LEASE).await).await;
        let running = kept.store.clone();
        clock::advance(LEASE);
        let duplicate = {
            let (keeper, store, key, running) = (Arc::clone(&keeper), store.clone(), key.clone(), running.clone());
            tokio::spawn(async move {
                let request = claim_request();
                match store.claim(&key, request).await.expect("there is room") {
                    Claim::Acquired { .. } => Some(keeper.hand_over(&running, &key, &request)),
                    Claim::InFlight { .. } | Claim::Completed(_) => None,
                    Claim::Lapsed { .. } => panic!("it may be followed"),
                }
            })
        };
        let ended = kept.end(|token| running.complete(&key, token, record("charge 1"), TTL)).await.expect("it answers");
        match duplicate.await.expect("the task is not aborted") {
            // Renewed or completed before the duplicate asked.
            None => assert_eq!(ended, Held::Yes),
            Some(is_handed_back) => assert_eq!(ended == Held::Yes, is_handed_back),
        }
    });
}
