//! The rules about a claim that is released before it arrives.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;

use crate::key::RecordKey;
use crate::policy::values::AfterCrash;
use crate::store::claim::{Claim, ClaimRequest, Held};
use crate::store::contract::{Store, StoreAdmin};
use crate::testing::conformance::fixtures::{
    LONG, claim, complete, get, lapse, purge, record, release, request, unique_key, until,
};

/// A claim under [`AfterCrash::Reject`] that is released before it arrives fails when it arrives, and leaves no entry.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_claim_that_was_given_back_does_not_arrive<S: StoreAdmin>(store: &Arc<S>) {
    let key = unique_key("given-back");
    let late = [given_back(store, &key).await, given_back(store, &key).await];
    assert_eq!(release(store, &key, late[0].token).await, Held::No, "a release may be repeated");
    assert_eq!(get(store, &key).await, None);
    for request in late {
        does_not_arrive(store, &key, request).await;
    }
    let next = request();
    assert_eq!(claim(store, &key, next).await, Claim::Acquired { attempt: 1 });
    assert_eq!(complete(store, &key, next.token, &record(), LONG).await, Held::Yes);
    assert!(matches!(claim(store, &key, request()).await, Claim::Completed(_)), "the record is gone");
}

/// A claim under [`AfterCrash::Reject`] that was given back also fails after other requests have had the key.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn others_let_no_claim_arrive_that_was_given_back<S: StoreAdmin>(store: &Arc<S>) {
    let key = unique_key("given-back-and-claimed");
    let late = given_back(store, &key).await;
    for _ in 0..2 {
        let other = another_claim(store, &key).await;
        assert_eq!(release(store, &key, other.token).await, Held::Yes);
    }
    does_not_arrive(store, &key, late).await;

    let key = unique_key("given-back-and-taken-over");
    let late = given_back(store, &key).await;
    let crashed = another_claim(store, &key).await;
    lapse(store, &key, crashed.token).await;
    let successor = request();
    assert_eq!(claim(store, &key, successor).await, Claim::Acquired { attempt: 2 });
    assert_eq!(release(store, &key, successor.token).await, Held::Yes);
    does_not_arrive(store, &key, late).await;

    let key = unique_key("given-back-and-recorded");
    let late = given_back(store, &key).await;
    let recorded = another_claim(store, &key).await;
    assert_eq!(complete(store, &key, recorded.token, &record(), Duration::from_millis(50)).await, Held::Yes);
    until(async || get(store, &key).await, Option::is_none).await;
    while store.delete_expired().await.expect("the store deletes what has expired") > 0 {}
    does_not_arrive(store, &key, late).await;
}

/// A claim under [`AfterCrash::Reject`] that was given back also fails after an operator has purged its key.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_purge_lets_no_claim_arrive_that_was_given_back<S: StoreAdmin>(store: &Arc<S>) {
    let key = unique_key("given-back-and-purged");
    let late = given_back(store, &key).await;
    assert!(!purge(store, &key).await, "nothing is there");
    does_not_arrive(store, &key, late).await;

    for is_recorded in [false, true] {
        let other = another_claim(store, &key).await;
        if is_recorded {
            assert_eq!(complete(store, &key, other.token, &record(), LONG).await, Held::Yes);
        }
        assert!(purge(store, &key).await);
        does_not_arrive(store, &key, late).await;
    }
}

/// A claim under [`AfterCrash::Reject`] that was given back while another request had the key also fails after that
/// request.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_claim_given_back_beside_another_does_not_arrive<S: StoreAdmin>(store: &Arc<S>) {
    let key = unique_key("given-back-beside-a-claim");
    let other = another_claim(store, &key).await;
    let late = given_back(store, &key).await;
    assert_eq!(release(store, &key, other.token).await, Held::Yes, "it is another one's");
    does_not_arrive(store, &key, late).await;

    let key = unique_key("given-back-beside-a-record");
    let other = another_claim(store, &key).await;
    assert_eq!(complete(store, &key, other.token, &record(), LONG).await, Held::Yes);
    let late = given_back(store, &key).await;
    assert!(matches!(claim(store, &key, request()).await, Claim::Completed(_)), "the record is gone");
    assert!(purge(store, &key).await);
    does_not_arrive(store, &key, late).await;
}

/// A claim under [`AfterCrash::Reject`] that is released while it arrives does not remain. Either the release ends it,
/// or it fails.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_release_beside_its_claim_leaves_no_claim<S: StoreAdmin>(store: &Arc<S>) {
    for round in 0..32 {
        let key = unique_key("released-beside");
        let late = ClaimRequest { after_crash: AfterCrash::Reject, ..request() };
        let (claim, release) = (store.claim(&key, late), release(store, &key, late.token));
        let (claimed, released) = if round % 2 == 0 {
            join(claim, release).await
        } else {
            let (released, claimed) = join(release, claim).await;
            (claimed, released)
        };
        let both = format!("{claimed:?} beside {released:?}");
        assert!(claimed.is_err() || released == Held::Yes, "{both}: the claim stays");
        assert_eq!(get(store, &key).await, None, "{both}");
        if released == Held::No {
            does_not_arrive(store, &key, late).await;
        }
    }
}

/// Releases a claim that is still on its way, and returns it.
async fn given_back<S: StoreAdmin>(store: &Arc<S>, key: &RecordKey) -> ClaimRequest {
    let late = ClaimRequest { after_crash: AfterCrash::Reject, ..request() };
    assert_eq!(release(store, key, late.token).await, Held::No);
    late
}

async fn another_claim<S: StoreAdmin>(store: &Arc<S>, key: &RecordKey) -> ClaimRequest {
    let other = request();
    assert_eq!(claim(store, key, other).await, Claim::Acquired { attempt: 1 }, "others are not kept from the key");
    other
}

async fn does_not_arrive<S: StoreAdmin>(store: &Arc<S>, key: &RecordKey, late: ClaimRequest) {
    let arrived = store.claim(key, late).await;
    assert!(arrived.is_err(), "it was given back before: {arrived:?}");
    assert_eq!(get(store, key).await, None);
}
