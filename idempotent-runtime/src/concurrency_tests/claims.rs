//! One key has one holder at a time, and one response.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::concurrency_tests::clock;
use crate::concurrency_tests::explore::{every_schedule, schedules};
use crate::concurrency_tests::fixtures::{LEASE, TTL, claim_request, record, record_key};
use crate::record::RecordedBody;
use crate::store::claim::{Claim, ClaimRequest, Held};
use crate::store::contract::{Store as _, StoreAdmin};
use crate::store::memory::store::MemoryStore;
use crate::sync::tokio;
use crate::sync::tokio::task::JoinHandle;

async fn claim(store: &MemoryStore, request: ClaimRequest) -> Claim {
    store.claim(&record_key("k"), request).await.expect("there is room")
}

async fn complete(store: &MemoryStore, request: ClaimRequest, body: &str) -> Held {
    store.complete(&record_key("k"), request.token, record(body), TTL).await.expect("there is room")
}

fn body(claim: &Claim) -> &str {
    let Claim::Completed(record) = claim else { panic!("no record but {claim:?}") };
    let RecordedBody::Whole(body) = &record.body else { panic!("no body in {record:?}") };
    str::from_utf8(body).expect("the concurrency tests record text")
}

fn claimant(store: &MemoryStore) -> JoinHandle<Claim> {
    let store = store.clone();
    tokio::spawn(async move { claim(&store, claim_request()).await })
}

async fn end<T>(task: JoinHandle<T>) -> T {
    task.await.expect("the task is not aborted")
}

// If one lock did not cover both the check and the entry, this could happen:
//   A checks: no entry
//   B checks: no entry
//   A enters its claim
//   B enters its claim over A's: both run the handler
#[test]
fn of_two_claims_one_is_acquired() {
    every_schedule(200_000, async || {
        let store = MemoryStore::new().without_expired_deletion();
        let (first, second) = (claimant(&store), claimant(&store));
        let claims = [end(first).await, end(second).await];
        let acquired = claims.iter().filter(|claim| **claim == Claim::Acquired { attempt: 1 }).count();
        let in_flight = claims.iter().filter(|claim| matches!(claim, Claim::InFlight { .. })).count();
        assert_eq!((acquired, in_flight), (1, 1), "{claims:?}");
    });
}

#[test]
fn holders_that_release_and_claim_again_never_overlap() {
    schedules(4_000, async || {
        let store = MemoryStore::new();
        let holders = Arc::<AtomicUsize>::default();
        let tasks = [(); 3].map(|()| {
            let (store, holders) = (store.clone(), Arc::clone(&holders));
            tokio::spawn(async move {
                for _ in 0..2 {
                    let request = claim_request();
                    if !matches!(claim(&store, request).await, Claim::Acquired { .. }) {
                        continue;
                    }
                    assert_eq!(holders.fetch_add(1, Ordering::Relaxed), 0, "two hold the key");
                    tokio::task::yield_now().await;
                    holders.fetch_sub(1, Ordering::Relaxed);
                    let held = store.release(&record_key("k"), request.token).await;
                    assert_eq!(held.expect("memory answers"), Held::Yes);
                }
            })
        });
        for task in tasks {
            end(task).await;
        }
        assert_eq!(store.used_bytes(), 0);
    });
}

// If the token were not compared under the lock, this could happen:
//   A claims; its lease expires
//   B claims, attempt 2
//   A completes: B's claim becomes A's record, although B runs
//   B completes: A's client has one response, every retry another one
#[test]
fn a_late_completion_never_overwrites_its_successor() {
    schedules(4_000, async || {
        let store = MemoryStore::new();
        let late = claim_request();
        assert_eq!(claim(&store, late).await, Claim::Acquired { attempt: 1 });
        let completing = {
            let store = store.clone();
            tokio::spawn(async move { complete(&store, late, "late").await })
        };
        let passing = tokio::spawn(async { clock::advance(LEASE) });
        let following = {
            let store = store.clone();
            tokio::spawn(async move {
                let request = claim_request();
                match claim(&store, request).await {
                    Claim::Acquired { attempt } => {
                        assert_eq!(attempt, 2);
                        Some(complete(&store, request, "next").await)
                    }
                    Claim::InFlight { .. } => None,
                    completed => {
                        assert_eq!(body(&completed), "late");
                        None
                    }
                }
            })
        };
        let (late, next) = (end(completing).await, end(following).await);
        end(passing).await;
        let expected = if late == Held::Yes { "late" } else { "next" };
        assert!(next.is_none_or(|next| next != late), "both or none completed: {late:?}, {next:?}");
        assert_eq!(body(&claim(&store, claim_request()).await), expected);
    });
}

// Without one lock for the comparison and the removal, this could happen:
//   A finds that it still holds its claim, which it wants to release; its lease expires
//   B claims, attempt 2
//   A removes the entry of the key, which is B's claim: C claims beside B
#[test]
fn a_late_release_never_removes_its_successor() {
    schedules(4_000, async || {
        let store = MemoryStore::new();
        let late = claim_request();
        assert_eq!(claim(&store, late).await, Claim::Acquired { attempt: 1 });
        let releasing = {
            let store = store.clone();
            tokio::spawn(async move { store.release(&record_key("k"), late.token).await.expect("memory answers") })
        };
        let passing = tokio::spawn(async { clock::advance(LEASE) });
        let next = claim_request();
        let claimed = claim(&store, next).await;
        let released = end(releasing).await;
        end(passing).await;
        let expected = match claimed {
            Claim::Acquired { attempt } => {
                assert_eq!(released, if attempt == 1 { Held::Yes } else { Held::No });
                Held::Yes
            }
            _ => Held::No,
        };
        assert_eq!(complete(&store, next, "next").await, expected);
    });
}

#[test]
fn a_record_that_was_seen_is_seen_by_every_later_claim() {
    schedules(4_000, async || {
        let store = MemoryStore::new();
        let request = claim_request();
        assert_eq!(claim(&store, request).await, Claim::Acquired { attempt: 1 });
        let seen = Arc::<AtomicUsize>::default();
        let readers = [(); 2].map(|()| {
            let (store, seen) = (store.clone(), Arc::clone(&seen));
            tokio::spawn(async move {
                for _ in 0..2 {
                    let was_seen = seen.load(Ordering::Relaxed) > 0;
                    match claim(&store, claim_request()).await {
                        Claim::InFlight { .. } => assert!(!was_seen, "a record has gone again"),
                        completed => {
                            assert_eq!(body(&completed), "charged");
                            seen.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            })
        });
        let disturbing = {
            let store = store.clone();
            tokio::spawn(async move {
                // None of these calls may change a live entry, or the claim of another request.
                let held = store.release(&record_key("k"), claim_request().token).await;
                assert_eq!(held.expect("memory answers"), Held::No);
                assert_eq!(store.delete_expired().await.expect("memory answers"), 0);
            })
        };
        assert_eq!(complete(&store, request, "charged").await, Held::Yes);
        for reader in readers {
            end(reader).await;
        }
        end(disturbing).await;
        assert_eq!(body(&claim(&store, claim_request()).await), "charged");
    });
}

// If an entry and its place in the queue of expiries were not removed under one lock, this could happen:
//   the expiry task removes A's old claim from the queue
//   B claims the key anew
//   the expiry task removes the entry under A's key, which is B's: C claims beside B
#[test]
fn deletion_of_an_expired_claim_leaves_its_successor() {
    schedules(4_000, async || {
        let store = MemoryStore::new();
        let short = ClaimRequest { ttl: LEASE, ..claim_request() };
        assert_eq!(claim(&store, short).await, Claim::Acquired { attempt: 1 });
        // This also wakes the store's own expiry task.
        clock::advance(LEASE + Duration::from_secs(1));
        let deleting = {
            let store = store.clone();
            tokio::spawn(async move { store.delete_expired().await })
        };
        let renewing = {
            let store = store.clone();
            tokio::spawn(async move { store.renew(&record_key("k"), short.token, LEASE).await })
        };
        let (first, second) = (claimant(&store), claimant(&store));
        let claims = [end(first).await, end(second).await];
        let acquired = claims.iter().filter(|claim| **claim == Claim::Acquired { attempt: 1 }).count();
        assert_eq!(acquired, 1, "{claims:?}");
        assert_eq!(end(renewing).await.expect("memory answers"), Held::No);
        end(deleting).await.expect("memory answers");
        assert!(matches!(claim(&store, claim_request()).await, Claim::InFlight { .. }));
    });
}
