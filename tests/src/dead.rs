//! What a process that died leaves in a store.

use std::time::Duration;

use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, Store, StoreAdmin, Token};
use idempotent_runtime::testing::decoders::fingerprint_of_nothing;
use idempotent_runtime::{Fingerprint, RecordKey};

/// Makes a first claim of the key `k` that is never renewed, as a request to a handler with `fingerprint = none`.
///
/// # Panics
///
/// When the claim is not granted.
pub async fn leave_a_claim(store: &impl Store, scope: &str, lease: Duration) -> (RecordKey, Token) {
    leave_a_claim_for(store, scope, lease, Duration::from_hours(24)).await
}

/// [`leave_a_claim`], with this ttl.
///
/// # Panics
///
/// When the claim is not granted.
pub async fn leave_a_claim_for(store: &impl Store, scope: &str, lease: Duration, ttl: Duration) -> (RecordKey, Token) {
    let key = RecordKey::new(scope, None, "k");
    let request = ClaimRequest::new(Token::unique(), fingerprint_of_nothing(&key))
        .with_lease(lease)
        .with_ttl(ttl)
        .with_after_crash(AfterCrash::Rerun);
    assert_eq!(store.claim(&key, request).await.expect("the store answers"), Claim::Acquired { attempt: 1 });
    (key, request.token)
}

/// Purges the key and claims it, as another process does that claims before the handler's next renewal.
///
/// # Panics
///
/// When the store fails.
pub async fn take_over(store: &impl StoreAdmin, key: &RecordKey) {
    let request = ClaimRequest::new(Token::unique(), fingerprint_of_another_request())
        .with_lease(Duration::from_hours(1))
        .with_ttl(Duration::from_hours(24))
        .with_after_crash(AfterCrash::Rerun);
    loop {
        store.purge(key).await.expect("the store answers");
        if store.claim(key, request).await.expect("the store answers") == (Claim::Acquired { attempt: 1 }) {
            return;
        }
    }
}

/// A fingerprint that differs from that of every request of the tests, in the form that a registry without a secret
/// computes.
pub fn fingerprint_of_another_request() -> Fingerprint {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&[0, 0, 0, 1]);
    Fingerprint::from_bytes(bytes)
}
