//! What a process that died leaves behind.

use std::time::Duration;

use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, Store, StoreAdmin, Token};
use idempotent_runtime::{Fingerprint, RecordKey};

/// A first claim of the key `k` that nobody renews, made by a request to a handler with `fingerprint = none`.
///
/// # Panics
///
/// When it is not granted.
pub async fn leave_a_claim(store: &impl Store, scope: &str, lease: Duration) -> (RecordKey, Token) {
    leave_a_claim_for(store, scope, lease, Duration::from_hours(24)).await
}

/// [`leave_a_claim`], with this time to live.
///
/// # Panics
///
/// When it is not granted.
pub async fn leave_a_claim_for(store: &impl Store, scope: &str, lease: Duration, ttl: Duration) -> (RecordKey, Token) {
    // What `fingerprint = none` and no `Authorization` make: the digest of nothing.
    let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let request = ClaimRequest::new(Token::unique(), nothing.parse::<Fingerprint>().expect("64 digits"))
        .with_lease(lease)
        .with_ttl(ttl)
        .with_after_crash(AfterCrash::Rerun);
    let key = RecordKey::new(scope, None, "k");
    assert_eq!(store.claim(&key, request).await.expect("the store answers"), Claim::Acquired { attempt: 1 });
    (key, request.token)
}

/// Purges the key, and claims it as another process does that is faster than the next renewal of the handler.
///
/// # Panics
///
/// When the store fails.
pub async fn take_over(store: &impl StoreAdmin, key: &RecordKey) {
    let request = ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([7; 32]))
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
