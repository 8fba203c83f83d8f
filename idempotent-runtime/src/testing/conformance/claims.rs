//! The rules about granting a claim.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::key::RecordKey;
use crate::record::{Record, RecordedBody};
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::contract::StoreAdmin;
use crate::testing::conformance::fixtures::{
    LONG, claim, complete, fingerprint, get, lapse, purge, record, release, renew, request, unique_key,
};

/// The first of two claims on one key gets attempt 1, and the second learns the fingerprint.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn the_first_claim_is_acquired_and_the_second_is_in_flight<S: StoreAdmin>(store: &Arc<S>) {
    let key = unique_key("first");
    assert_eq!(claim(store, &key, request()).await, Claim::Acquired { attempt: 1 });
    let in_flight = Claim::InFlight { fingerprint: fingerprint(1) };
    assert_eq!(claim(store, &key, request()).await, in_flight);
    let other = ClaimRequest { fingerprint: fingerprint(2), ..request() };
    assert_eq!(claim(store, &key, other).await, in_flight, "the fingerprint is the holder's");
}

/// One of many concurrent claims is acquired.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn of_64_concurrent_claims_one_is_acquired<S: StoreAdmin>(store: &Arc<S>) {
    for _ in 0..8 {
        let key = unique_key("concurrent");
        let claims = (0..64).map(|_| {
            let (store, key) = (Arc::clone(store), key.clone());
            tokio::spawn(async move { claim(&store, &key, request()).await })
        });
        let claims: Vec<_> = join_all(claims).await.into_iter().map(|claim| claim.expect("no claim panics")).collect();
        let acquired = claims.iter().filter(|claim| matches!(claim, Claim::Acquired { attempt: 1 })).count();
        let in_flight = claims.iter().filter(|claim| matches!(claim, Claim::InFlight { .. })).count();
        assert_eq!((acquired, in_flight), (1, 63), "{claims:?}");
    }
}

/// A claim that is repeated because its answer was lost is not rejected as its own duplicate.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_retried_claim_recognises_its_token<S: StoreAdmin>(store: &Arc<S>) {
    let key = unique_key("retried");
    let request = request();
    for _ in 0..3 {
        assert_eq!(claim(store, &key, request).await, Claim::Acquired { attempt: 1 });
    }
}

/// An unknown key has no entry, and no token holds it.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn unknown_key_has_no_entry<S: StoreAdmin>(store: &Arc<S>) {
    let (key, token) = (unique_key("unknown"), Token::unique());
    assert_eq!(renew(store, &key, token, LONG).await, Held::No);
    assert_eq!(complete(store, &key, token, &record(), LONG).await, Held::No);
    assert_eq!(release(store, &key, token).await, Held::No);
    assert_eq!(get(store, &key).await, None);
    assert!(!purge(store, &key).await);
}

/// After a release the key counts as new.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_release_frees_the_key_and_the_attempts<S: StoreAdmin>(store: &Arc<S>) {
    let (key, first, second) = (unique_key("released"), request(), request());
    let _ = claim(store, &key, first).await;
    lapse(store, &key, first.token).await;
    assert_eq!(claim(store, &key, second).await, Claim::Acquired { attempt: 2 });
    assert_eq!(release(store, &key, second.token).await, Held::Yes);
    assert_eq!(release(store, &key, second.token).await, Held::No);
    assert_eq!(complete(store, &key, second.token, &record(), LONG).await, Held::No);
    assert_eq!(get(store, &key).await, None);
    let other = ClaimRequest { fingerprint: fingerprint(2), ..request() };
    assert_eq!(claim(store, &key, other).await, Claim::Acquired { attempt: 1 });
}

/// Keys whose parts have the same concatenation are different keys.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn different_keys_never_meet<S: StoreAdmin>(store: &Arc<S>) {
    let unique = format!("{:x}", Token::unique().as_u128());
    let long = "x".repeat(3000);
    let parts: [(&str, Option<&str>, &str); 24] = [
        ("a", None, "b:c"),
        ("a:b", None, "c"),
        ("a", Some("b"), "c"),
        ("a", None, "b/c"),
        ("a/b", None, "c"),
        ("a", None, "b%2Fc"),
        ("a", Some(""), "c"),
        ("a", None, "c"),
        ("a", Some("@"), "c"),
        ("a", Some("@b"), "c"),
        ("a/@b", None, "c"),
        ("a", Some("B"), "c"),
        ("A", None, "c"),
        ("a", None, "C"),
        ("a", None, "c "),
        ("a", None, " c"),
        ("a", Some("b "), "c"),
        ("a", Some("b\0"), "c"),
        ("a", Some("é"), "c"),
        ("a", Some("e\u{301}"), "c"),
        ("a", Some("%00"), "c"),
        ("a", Some("_"), "c"),
        ("a", Some("%"), "c"),
        ("a", Some(&long), "c"),
    ];
    let keys: Vec<_> =
        parts.iter().map(|(scope, caller, key)| RecordKey::new(&format!("{unique}{scope}"), *caller, key)).collect();
    for (index, key) in keys.iter().enumerate() {
        let request = request();
        assert_eq!(claim(store, key, request).await, Claim::Acquired { attempt: 1 }, "{:?} is taken", parts[index]);
        let record =
            Record { body: RecordedBody::Whole(Bytes::from(vec![u8::try_from(index).unwrap_or(0)])), ..record() };
        let _ = complete(store, key, request.token, &record, LONG).await;
    }
    for (index, key) in keys.iter().enumerate() {
        let Claim::Completed(record) = claim(store, key, request()).await else { panic!("{:?} is gone", parts[index]) };
        let expected = [u8::try_from(index).unwrap_or(0)];
        assert_eq!(record.body_bytes().map(AsRef::as_ref), Some(expected.as_slice()), "{:?}", parts[index]);
    }
}
