//! The bytes of the store in memory are never over the limit and never below zero, and zero when the store is empty.

use crate::concurrency_tests::clock;
use crate::concurrency_tests::explore::schedules;
use crate::concurrency_tests::fixtures::{TTL, claim_request, record, record_key};
use crate::store::claim::{Claim, Held};
use crate::store::contract::{Store as _, StoreAdmin};
use crate::store::error::StoreError;
use crate::store::memory::store::MemoryStore;
use crate::sync::tokio;

/// Returns the number of bytes that a claim takes under a key of one letter.
fn bytes_of_a_claim() -> usize {
    192 + record_key("a").as_str().len()
}

// If the check and the sum were not one atomic step, this could happen:
//   A checks: room for one claim
//   B checks: room for one claim
//   A and B add their claims: the store is over its limit
#[test]
fn two_claims_do_not_share_room_for_one() {
    schedules(4_000, async || {
        let room = bytes_of_a_claim();
        let store = MemoryStore::builder().max_bytes(room).build();
        let tasks = ["a", "b"].map(|name| {
            let store = store.clone();
            tokio::spawn(async move { store.claim(&record_key(name), claim_request()).await })
        });
        let mut acquired = 0;
        for task in tasks {
            match task.await.expect("the task is not aborted") {
                Ok(claim) => {
                    assert_eq!(claim, Claim::Acquired { attempt: 1 });
                    acquired += 1;
                }
                Err(error) => assert!(matches!(error, StoreError::Full), "{error}"),
            }
        }
        assert_eq!((acquired, store.used_bytes()), (1, room));
    });
}

// If a record were not counted under the lock of its shard, this could happen:
//   A enters its record and releases the lock
//   B purges the key, and subtracts the bytes of claim and record: the sum is below zero, which is over every limit
//   A adds the bytes of the record
#[test]
fn bytes_stay_between_zero_and_the_limit_and_end_at_zero() {
    const BODY: &str = "charged";
    schedules(4_000, async || {
        let claims = 2 * bytes_of_a_claim();
        let store = MemoryStore::builder().max_bytes(claims).build();
        // The record of a claim that was granted is always accepted, so these bytes may exceed the limit.
        let limit = claims + 2 * record(BODY).payload_bytes();
        let tasks = ["a", "b", "a"].map(|name| {
            let store = store.clone();
            tokio::spawn(async move {
                let (key, request) = (record_key(name), claim_request());
                if let Ok(Claim::Acquired { .. }) = store.claim(&key, request).await {
                    let _: Result<Held, _> = store.complete(&key, request.token, record(BODY), TTL).await;
                }
                assert!(store.used_bytes() <= limit, "{} of {limit} bytes", store.used_bytes());
            })
        });
        let freeing = {
            let store = store.clone();
            tokio::spawn(async move {
                store.purge(&record_key("a")).await.expect("memory answers");
                assert!(store.used_bytes() <= limit, "{} of {limit} bytes", store.used_bytes());
                // The remaining entry expires: the expiry task of the store wakes and runs beside the others.
                clock::advance(TTL);
                store.delete_expired().await.expect("memory answers");
                assert!(store.used_bytes() <= limit, "{} of {limit} bytes", store.used_bytes());
            })
        };
        for task in tasks.into_iter().chain([freeing]) {
            task.await.expect("the task is not aborted");
        }
        for name in ["a", "b"] {
            store.purge(&record_key(name)).await.expect("memory answers");
        }
        assert_eq!((store.used_bytes(), store.len()), (0, 0));
    });
}

// The expiry task sleeps until the next known expiry. If its time were not set under its own lock, this could happen:
//   the expiry task finds nothing in any shard
//   A enters a claim, and finds an expiry task that is not finished: it spawns none
//   the expiry task ends: A's claim is never freed
#[test]
fn expired_bytes_are_freed_although_the_deletion_task_ends() {
    schedules(4_000, async || {
        let store = MemoryStore::new();
        let request = claim_request();
        store.claim(&record_key("a"), request).await.expect("there is room");
        store.purge(&record_key("a")).await.expect("memory answers");
        let ending = tokio::spawn(async { clock::advance(TTL) });
        store.claim(&record_key("b"), claim_request()).await.expect("there is room");
        ending.await.expect("the task is not aborted");
        clock::advance(TTL);
        until_empty(&store).await;
    });
}

/// Lets the other tasks run until the store is empty. If the store is never emptied, the execution is endless, and the
/// checker reports it.
async fn until_empty(store: &MemoryStore) {
    while !store.is_empty() {
        tokio::task::yield_now().await;
        clock::advance(TTL);
    }
    assert_eq!(store.used_bytes(), 0);
}
