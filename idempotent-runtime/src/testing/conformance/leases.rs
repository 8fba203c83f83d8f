//! The rules about a claim whose holder is late or dead.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, sleep};

use crate::key::RecordKey;
use crate::policy::values::AfterCrash;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held};
use crate::store::claim::{Renewal, Token};
use crate::store::contract::{Store, StoreAdmin};
use crate::testing::conformance::fixtures::{
    LONG, ROUNDING, claim, complete, fingerprint, get, lapse, record, release, renew, request, unique_key, until,
};

/// A claim without renewals can be taken over after its lease has expired, and not before.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn expired_lease_is_taken_over_as_next_attempt<S: StoreAdmin>(store: &Arc<S>) {
    const LEASE: Duration = Duration::from_secs(1);

    let key = unique_key("lease");
    let begun = Instant::now();
    let _ = claim(store, &key, ClaimRequest { lease: LEASE, ..request() }).await;
    let next = request();
    let claim = until(async || claim(store, &key, next).await, |claim| !matches!(claim, Claim::InFlight { .. })).await;
    assert_eq!(claim, Claim::Acquired { attempt: 2 });
    assert!(begun.elapsed() + ROUNDING >= LEASE, "taken over after {:?} of a lease of {LEASE:?}", begun.elapsed());
}

/// A renewed claim outlives its first lease.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_renewal_keeps_the_claim<S: StoreAdmin>(store: &Arc<S>) {
    const LEASE: Duration = Duration::from_secs(1);

    let (key, request) = (unique_key("renewed"), ClaimRequest { lease: LEASE, ..request() });
    let _ = claim(store, &key, request).await;
    assert_eq!(renew(store, &key, request.token, LONG).await, Held::Yes);
    sleep(LEASE + LEASE / 2).await;
    assert_eq!(claim(store, &key, self::request()).await, Claim::InFlight { fingerprint: fingerprint(1) });
    assert_eq!(complete(store, &key, request.token, &record(), LONG).await, Held::Yes);
}

/// Renewals of many keys at once get one answer each, in order. Each uses its own token and its own time.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn renewals_of_many_keys_are_answered_one_by_one<S: StoreAdmin>(store: &Arc<S>) {
    let (kept, lapsed, other, recorded) = (request(), request(), request(), request());
    let keys @ [kept_key, lapsed_key, other_key, recorded_key, unknown_key] =
        &["many-kept", "many-lapsed", "many-other", "many-recorded", "many-unknown"].map(unique_key);
    for (key, request) in keys.iter().zip([kept, lapsed, other, recorded]) {
        assert_eq!(claim(store, key, request).await, Claim::Acquired { attempt: 1 });
    }
    assert_eq!(complete(store, recorded_key, recorded.token, &record(), LONG).await, Held::Yes);
    lapse(store, kept_key, kept.token).await;
    let renewal = |key: &RecordKey, token, lease| Renewal { key: key.clone(), token, lease };
    let renewals = [
        renewal(unknown_key, Token::unique(), LONG),
        renewal(kept_key, kept.token, LONG),
        renewal(other_key, Token::unique(), Duration::ZERO),
        renewal(recorded_key, recorded.token, LONG),
        renewal(lapsed_key, lapsed.token, Duration::ZERO),
    ];
    let answers = store.renew_many(&renewals).await;
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.expect("the store renews")).collect();
    assert_eq!(answers, [Held::No, Held::Yes, Held::No, Held::No, Held::Yes], "one answer each, in order");

    let in_flight = Claim::InFlight { fingerprint: fingerprint(1) };
    assert_eq!(claim(store, kept_key, request()).await, in_flight, "its lease begins anew");
    assert_eq!(claim(store, other_key, request()).await, in_flight, "another token changes nothing");
    assert_eq!(claim(store, lapsed_key, request()).await, Claim::Acquired { attempt: 2 }, "each has its own time");
    assert_eq!(get(store, unknown_key).await, None);
    assert!(store.renew_many(&[]).await.is_empty(), "nothing is asked for");
}

/// A renewal with a lease of zero ends the lease at once.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_lease_of_zero_lapses_at_once<S: StoreAdmin>(store: &Arc<S>) {
    let (key, first) = (unique_key("zero"), request());
    let _ = claim(store, &key, first).await;
    lapse(store, &key, first.token).await;
    assert_eq!(claim(store, &key, request()).await, Claim::Acquired { attempt: 2 });
}

/// After a takeover, the old token can no longer renew, complete or release.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_stale_token_can_neither_renew_complete_nor_release<S: StoreAdmin>(store: &Arc<S>) {
    let (key, stale, current) = (unique_key("stale"), request(), request());
    let _ = claim(store, &key, stale).await;
    lapse(store, &key, stale.token).await;
    assert_eq!(claim(store, &key, current).await, Claim::Acquired { attempt: 2 });
    assert_eq!(renew(store, &key, stale.token, Duration::ZERO).await, Held::No);
    assert_eq!(release(store, &key, stale.token).await, Held::No);
    assert_eq!(complete(store, &key, stale.token, &record(), LONG).await, Held::No);
    assert_eq!(claim(store, &key, stale).await, Claim::InFlight { fingerprint: fingerprint(1) });
    let own = Record { status: StatusCode::ACCEPTED, ..record() };
    assert_eq!(complete(store, &key, current.token, &own, LONG).await, Held::Yes);
    assert_eq!(complete(store, &key, stale.token, &record(), LONG).await, Held::No, "after the completion too");
    assert_eq!(release(store, &key, stale.token).await, Held::No);
    assert_eq!(claim(store, &key, request()).await, Claim::Completed(own));
}

/// A claim with an expired lease can be taken over only by the same request.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn another_fingerprint_never_takes_over<S: StoreAdmin>(store: &Arc<S>) {
    let (key, first) = (unique_key("other-fingerprint"), request());
    let _ = claim(store, &key, first).await;
    lapse(store, &key, first.token).await;
    let other = ClaimRequest { fingerprint: fingerprint(2), ..request() };
    assert_eq!(claim(store, &key, other).await, Claim::Lapsed { fingerprint: fingerprint(1) });
    assert_eq!(claim(store, &key, request()).await, Claim::Acquired { attempt: 2 });
}

/// A claim that was made under an earlier secret can be taken over by the same request, and has the new fingerprint
/// from then on.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_takeover_replaces_the_former_fingerprint<S: StoreAdmin>(store: &Arc<S>) {
    let (key, first) = (unique_key("former-fingerprint"), request());
    let _ = claim(store, &key, first).await;
    let new = || ClaimRequest { fingerprint: fingerprint(2), ..request() };
    let next = new().with_former_fingerprint(fingerprint(1));
    assert_eq!(claim(store, &key, next).await, Claim::InFlight { fingerprint: fingerprint(1) });
    lapse(store, &key, first.token).await;
    assert_eq!(claim(store, &key, next).await, Claim::Acquired { attempt: 2 });
    assert_eq!(get(store, &key).await.map(|entry| entry.fingerprint), Some(fingerprint(2)));
    lapse(store, &key, next.token).await;
    assert_eq!(claim(store, &key, request()).await, Claim::Lapsed { fingerprint: fingerprint(2) });
    assert_eq!(claim(store, &key, new()).await, Claim::Acquired { attempt: 3 });
}

/// Under [`AfterCrash::Reject`], a claim with an expired lease is not taken over.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn reject_never_takes_over<S: StoreAdmin>(store: &Arc<S>) {
    let (key, first) = (unique_key("reject"), request());
    let _ = claim(store, &key, first).await;
    let reject = || ClaimRequest { after_crash: AfterCrash::Reject, ..request() };
    assert_eq!(claim(store, &key, reject()).await, Claim::InFlight { fingerprint: fingerprint(1) });
    lapse(store, &key, first.token).await;
    for _ in 0..3 {
        assert_eq!(claim(store, &key, reject()).await, Claim::Lapsed { fingerprint: fingerprint(1) });
    }
    assert_eq!(claim(store, &key, request()).await, Claim::Acquired { attempt: 2 }, "the request's own policy decides");
}

/// A late holder can still complete or renew if no other claim took over.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn late_holder_completes_if_not_taken_over<S: StoreAdmin>(store: &Arc<S>) {
    let (key, late) = (unique_key("late"), request());
    let _ = claim(store, &key, late).await;
    lapse(store, &key, late.token).await;
    assert_eq!(renew(store, &key, late.token, LONG).await, Held::Yes);
    assert_eq!(claim(store, &key, request()).await, Claim::InFlight { fingerprint: fingerprint(1) });
    lapse(store, &key, late.token).await;
    assert_eq!(complete(store, &key, late.token, &record(), LONG).await, Held::Yes);
    assert_eq!(claim(store, &key, request()).await, Claim::Completed(record()));
}

/// The claim of a dead process is kept for its `ttl` after its last claim or renewal, and therefore longer than its
/// lease.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn claim_expires_ttl_after_last_renewal<S: StoreAdmin>(store: &Arc<S>) {
    const TTL: Duration = Duration::from_secs(1);

    let (key, first) = (unique_key("claim-expires"), ClaimRequest { ttl: TTL, lease: TTL / 2, ..request() });
    let _ = claim(store, &key, first).await;
    sleep(TTL / 2).await;
    let begun = Instant::now();
    lapse(store, &key, first.token).await;
    until(async || get(store, &key).await, Option::is_none).await;
    assert!(begun.elapsed() + ROUNDING >= TTL, "forgotten {:?} after the renewal", begun.elapsed());
    assert_eq!(claim(store, &key, request()).await, Claim::Acquired { attempt: 1 });
}
