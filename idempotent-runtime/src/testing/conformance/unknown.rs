//! The rules about a claim that may not be taken over. It stays until it is completed, released or purged.

use std::sync::Arc;
use std::time::Duration;

use crate::key::RecordKey;
use crate::policy::values::AfterCrash;
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::contract::StoreAdmin;
use crate::store::entry::EntryState;
use crate::testing::conformance::fixtures::{
    LONG, claim, complete, fingerprint, get, lapse, purge, record, release, renew, request, unique_key, until,
};

const TTL: Duration = Duration::from_secs(1);

/// Creates the request for a claim under `after_crash` that a clock could end soon.
fn short(after_crash: AfterCrash) -> ClaimRequest {
    ClaimRequest { lease: TTL / 2, ttl: TTL, after_crash, ..request() }
}

/// Waits until a claim that was made earlier has expired, if it can expire.
async fn until_expired<S: StoreAdmin>(store: &Arc<S>) {
    let key = unique_key("expires");
    let _ = claim(store, &key, short(AfterCrash::Rerun)).await;
    until(async || get(store, &key).await, Option::is_none).await;
}

/// Under [`AfterCrash::Reject`], a claim has no ttl. It stays until it is completed, released or purged.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn an_unknown_outcome_never_expires<S: StoreAdmin>(store: &Arc<S>) {
    let keys: [_; 4] = std::array::from_fn(|_| unique_key("unknown"));
    let requests: [_; 4] = std::array::from_fn(|_| short(AfterCrash::Reject));
    for (key, request) in keys.iter().zip(requests) {
        assert_eq!(claim(store, key, request).await, Claim::Acquired { attempt: 1 });
    }
    until_expired(store).await;
    let _ = store.delete_expired().await.expect("the store deletes expired entries");
    for (key, request) in keys.iter().zip(requests) {
        let retry = claim(store, key, short(AfterCrash::Reject)).await;
        assert_eq!(retry, Claim::Lapsed { fingerprint: fingerprint(1) }, "after its ttl");
        let entry = get(store, key).await.expect("the key has an entry");
        assert_eq!(entry.expires_in, None, "{entry:?}");
        assert_eq!(entry.state, EntryState::Claimed { attempt: 1, lease: None, token: request.token });
    }
    let [completed, released, purged, renewed] = keys;
    let [late, gone, _, back] = requests.map(|request| request.token);
    assert_eq!(complete(store, &completed, late, &record(), LONG).await, Held::Yes);
    let entry = get(store, &completed).await.expect("the key has an entry");
    assert!(entry.expires_in.is_some_and(|left| left <= LONG), "a record expires: {entry:?}");
    assert_eq!(release(store, &released, gone).await, Held::Yes);
    assert!(purge(store, &purged).await);
    for key in [&released, &purged] {
        assert_eq!(claim(store, key, short(AfterCrash::Reject)).await, Claim::Acquired { attempt: 1 });
        assert!(purge(store, key).await);
    }
    assert_eq!(renew(store, &renewed, back, LONG).await, Held::Yes);
    assert_eq!(claim(store, &renewed, request()).await, Claim::InFlight { fingerprint: fingerprint(1) });
    assert_eq!(
        get(store, &renewed).await.expect("the key has an entry").expires_in,
        None,
        "a renewal changes that not"
    );
    assert!(purge(store, &renewed).await);
}

/// A claim with an expired lease never expires after it has rejected the same request under [`AfterCrash::Reject`].
/// Before its lease expires, a request changes nothing. A different request never changes it.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn what_was_rejected_once_stays_rejected<S: StoreAdmin>(store: &Arc<S>) {
    let running = unique_key("rejected-while-it-runs");
    let _ = claim(store, &running, request()).await;
    let duplicate = ClaimRequest { after_crash: AfterCrash::Reject, ..request() };
    assert_eq!(claim(store, &running, duplicate).await, Claim::InFlight { fingerprint: fingerprint(1) });
    let entry = get(store, &running).await.expect("the key has an entry");
    assert!(entry.expires_in.is_some(), "a duplicate of a running request has no say: {entry:?}");
    assert!(purge(store, &running).await);
    let (key, first) = (unique_key("rejected-once"), short(AfterCrash::Rerun));
    let _ = claim(store, &key, first).await;
    lapse(store, &key, first.token).await;
    let another = ClaimRequest { fingerprint: fingerprint(2), ..short(AfterCrash::Reject) };
    assert_eq!(claim(store, &key, another).await, Claim::Lapsed { fingerprint: fingerprint(1) });
    let entry = get(store, &key).await.expect("the key has an entry");
    assert!(entry.expires_in.is_some(), "another request has no say: {entry:?}");
    for _ in 0..2 {
        let rejected = claim(store, &key, short(AfterCrash::Reject)).await;
        assert_eq!(rejected, Claim::Lapsed { fingerprint: fingerprint(1) });
        until_expired(store).await;
    }
    assert!(purge(store, &key).await);
}

/// The policy of the request decides. Under [`AfterCrash::Rerun`], the request takes over a claim that was made under
/// another policy, and the claim then expires like any claim under `Rerun`.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_rerun_takes_an_unknown_outcome_over<S: StoreAdmin>(store: &Arc<S>) {
    let (key, first, second) = (unique_key("policy-changed"), short(AfterCrash::Reject), short(AfterCrash::Rerun));
    let _ = claim(store, &key, first).await;
    assert_eq!(claim(store, &key, second).await, Claim::InFlight { fingerprint: fingerprint(1) });
    lapse(store, &key, first.token).await;
    assert_eq!(claim(store, &key, second).await, Claim::Acquired { attempt: 2 });
    let entry = get(store, &key).await.expect("the key has an entry");
    assert!(entry.expires_in.is_some_and(|left| left <= TTL), "{entry:?}");
    assert_eq!(complete(store, &key, first.token, &record(), LONG).await, Held::No, "it was followed");
    until(async || get(store, &key).await, Option::is_none).await;
    assert_eq!(claim(store, &key, request()).await, Claim::Acquired { attempt: 1 });
}

/// [`StoreAdmin::unknown_outcomes`] counts, by scope, the claims that never expire and whose lease has expired.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn unknown_outcomes_are_counted<S: StoreAdmin>(store: &Arc<S>) {
    let scope = format!("conformance: {:x}", Token::unique().as_u128());
    let key = |name: &str| RecordKey::new(&scope, Some("counted/by"), name);
    let counted = async || {
        let unknown = store.unknown_outcomes().await.expect("the store counts");
        unknown.get(&scope).copied()
    };
    let claims = [
        ("first", AfterCrash::Reject),
        ("second", AfterCrash::Reject),
        ("runs", AfterCrash::Reject),
        ("may-run-again", AfterCrash::Rerun),
    ];
    for (name, after_crash) in claims {
        let request = ClaimRequest { after_crash, ..request() };
        let _ = claim(store, &key(name), request).await;
        if name != "runs" {
            lapse(store, &key(name), request.token).await;
        }
    }
    assert_eq!(counted().await, Some(2));
    assert!(purge(store, &key("first")).await);
    assert_eq!(counted().await, Some(1));
    assert_eq!(claim(store, &key("second"), request()).await, Claim::Acquired { attempt: 2 });
    assert_eq!(counted().await, None, "attempt 2 runs");
    let reject = ClaimRequest { after_crash: AfterCrash::Reject, ..request() };
    assert_eq!(claim(store, &key("may-run-again"), reject).await, Claim::Lapsed { fingerprint: fingerprint(1) });
    assert_eq!(counted().await, Some(1), "it is rejected from now on");
    for (name, _) in claims {
        let _ = purge(store, &key(name)).await;
    }
    assert_eq!(counted().await, None);
}
