//! The rules about operators who end a claim. They can end only a claim whose lease has expired.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};

use crate::key::RecordKey;
use crate::policy::values::AfterCrash;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::contract::StoreAdmin;
use crate::store::entry::{Entry, EntryState};
use crate::store::resolution::{Resolution, Resolved};
use crate::testing::conformance::fixtures::{
    LONG, claim, complete, fingerprint, get, lapse, record, release, renew, request, unique_key, until,
};

async fn resolve<S: StoreAdmin>(store: &Arc<S>, key: &RecordKey, token: Token, resolution: &Resolution) -> Resolved {
    store.resolve(key, token, resolution.clone()).await.expect("the store resolves")
}

fn executed() -> Resolution {
    Resolution::executed(record(), LONG)
}

fn for_good() -> ClaimRequest {
    ClaimRequest { after_crash: AfterCrash::Reject, ..request() }
}

/// Creates the claim of a handler that crashed.
async fn lapsed<S: StoreAdmin>(store: &Arc<S>, name: &str, request: ClaimRequest) -> (RecordKey, Token) {
    let key = unique_key(name);
    let _ = claim(store, &key, request).await;
    lapse(store, &key, request.token).await;
    (key, request.token)
}

/// Every request gets the record of [`Resolution::Executed`], with all of its parts. A repeated call changes nothing.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_resolution_records_what_was_executed<S: StoreAdmin>(store: &Arc<S>) {
    for request_of_claim in [for_good(), request()] {
        let (key, token) = lapsed(store, "resolved", request_of_claim).await;
        let resolution = executed();
        for time in ["the first time", "repeated"] {
            assert_eq!(resolve(store, &key, token, &resolution).await, Resolved::Yes, "{time}");
            assert_eq!(claim(store, &key, request()).await, Claim::Completed(record()), "{time}");
        }
        let other = ClaimRequest { fingerprint: fingerprint(2), ..for_good() };
        assert_eq!(claim(store, &key, other).await, Claim::Completed(record()));
        let entry = get(store, &key).await.expect("the key has an entry");
        assert!(entry.expires_in.is_some_and(|left| left <= LONG && left > LONG / 2), "{entry:?}");
        assert!(!entry.is_unknown_outcome());
    }
}

/// After [`Resolution::NotExecuted`], the next claim is the first one.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_resolution_frees_what_was_not_executed<S: StoreAdmin>(store: &Arc<S>) {
    for request_of_claim in [for_good(), request()] {
        let (key, token) = lapsed(store, "freed", request_of_claim).await;
        assert_eq!(resolve(store, &key, token, &Resolution::NotExecuted).await, Resolved::Yes);
        assert_eq!(get(store, &key).await, None);
        assert_eq!(complete(store, &key, token, &record(), LONG).await, Held::No);
        let other = ClaimRequest { fingerprint: fingerprint(2), ..for_good() };
        assert_eq!(claim(store, &key, other).await, Claim::Acquired { attempt: 1 });
    }
}

/// The holder of the claim learns that it lost the claim, however late it is. Retries get the record of the resolution.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_late_holder_does_not_get_a_resolution<S: StoreAdmin>(store: &Arc<S>) {
    let (key, token) = lapsed(store, "late", for_good()).await;
    assert_eq!(resolve(store, &key, token, &executed()).await, Resolved::Yes);
    let late = Record { status: http::StatusCode::ACCEPTED, ..record() };
    assert_eq!(complete(store, &key, token, &late, LONG).await, Held::No);
    assert_eq!(renew(store, &key, token, LONG).await, Held::No);
    assert_eq!(release(store, &key, token).await, Held::No);
    assert_eq!(claim(store, &key, request()).await, Claim::Completed(record()));
}

/// A claim whose lease has not expired is not changed, and neither is one that was renewed after its lease had expired.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_running_claim_is_not_resolved<S: StoreAdmin>(store: &Arc<S>) {
    for request in [for_good(), request()] {
        let key = unique_key("running");
        let _ = claim(store, &key, request).await;
        for came_back in [false, true] {
            if came_back {
                lapse(store, &key, request.token).await;
                assert_eq!(renew(store, &key, request.token, LONG / 2).await, Held::Yes);
            }
            for resolution in [executed(), Resolution::NotExecuted] {
                let resolved = resolve(store, &key, request.token, &resolution).await;
                assert_eq!(resolved, Resolved::StillRunning, "{resolution:?}, {came_back}");
            }
        }
        assert_eq!(complete(store, &key, request.token, &record(), LONG).await, Held::Yes);
    }
}

/// A resolution does not change another claim, a record or an absent entry.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_resolution_needs_the_token_that_was_looked_at<S: StoreAdmin>(store: &Arc<S>) {
    for resolution in [executed(), Resolution::NotExecuted] {
        let (key, looked_at) = lapsed(store, "fenced", request()).await;
        let successor = request();
        assert_eq!(claim(store, &key, successor).await, Claim::Acquired { attempt: 2 });
        lapse(store, &key, successor.token).await;
        assert_eq!(resolve(store, &key, looked_at, &resolution).await, Resolved::ChangedHands);
        let entry = get(store, &key).await;
        assert!(
            matches!(entry, Some(Entry { state: EntryState::Claimed { attempt: 2, token, .. }, .. }) if token == successor.token),
            "{entry:?}"
        );
        let own = Record { status: http::StatusCode::ACCEPTED, ..record() };
        assert_eq!(complete(store, &key, successor.token, &own, LONG).await, Held::Yes);
        for token in [looked_at, successor.token] {
            assert_eq!(resolve(store, &key, token, &resolution).await, Resolved::ChangedHands, "of a record");
        }
        assert_eq!(claim(store, &key, request()).await, Claim::Completed(own));
        let absent = unique_key("absent");
        assert_eq!(resolve(store, &absent, looked_at, &resolution).await, Resolved::ChangedHands);
        assert_eq!(get(store, &absent).await, None);
    }
}

/// One of several concurrent resolutions takes effect.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn of_many_resolutions_one_wins<S: StoreAdmin>(store: &Arc<S>) {
    for _ in 0..4 {
        let (key, token) = lapsed(store, "contested", for_good()).await;
        let resolutions: Vec<_> = (0..8)
            .map(|number| match number {
                0 => Resolution::NotExecuted,
                number => {
                    let status = http::StatusCode::from_u16(200 + number).expect("a status");
                    Resolution::executed(Record { status, ..record() }, LONG)
                }
            })
            .collect();
        let resolved = join_all(resolutions.iter().map(|each| resolve(store, &key, token, each))).await;
        let mut winners = resolutions.iter().zip(&resolved).filter(|(_, resolved)| **resolved == Resolved::Yes);
        let winner = winners.next().map(|(resolution, _)| resolution);
        assert_eq!((winner.is_some(), winners.next()), (true, None), "{resolved:?}");
        assert!(
            resolved.iter().all(|resolved| matches!(resolved, Resolved::Yes | Resolved::ChangedHands)),
            "{resolved:?}"
        );
        match winner {
            Some(Resolution::Executed { record, .. }) => {
                assert_eq!(claim(store, &key, request()).await, Claim::Completed(record.clone()));
            }
            _ => assert_eq!(get(store, &key).await, None),
        }
    }
}

/// If a renewal and a resolution run at the same time, only one of them takes effect.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_renewal_beside_a_resolution_excludes_it<S: StoreAdmin>(store: &Arc<S>) {
    // All of them run at once. A store that works in batches then has the longest time in which one can come between.
    join_all((0..64).map(|number| one_renewal_beside_a_resolution(store, number))).await;
}

async fn one_renewal_beside_a_resolution<S: StoreAdmin>(store: &Arc<S>, number: usize) {
    let (key, token) = lapsed(store, "came-back", for_good()).await;
    let resolution = if number.is_multiple_of(2) { executed() } else { Resolution::NotExecuted };
    let (renewing, resolving) = (renew(store, &key, token, LONG / 2), resolve(store, &key, token, &resolution));
    let (renewed, resolved) = if number % 4 < 2 {
        join(renewing, resolving).await
    } else {
        let (resolved, renewed) = join(resolving, renewing).await;
        (renewed, resolved)
    };
    let ended = (renewed, resolved, complete(store, &key, token, &record(), LONG).await);
    let is_allowed =
        matches!(ended, (Held::Yes, Resolved::StillRunning, Held::Yes) | (Held::No, Resolved::Yes, Held::No));
    assert!(is_allowed, "the renewal, the resolution, and a completion after both: {ended:?}");
}

/// The record is kept for the ttl of the resolution, and is no longer an unknown outcome.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_resolved_record_expires<S: StoreAdmin>(store: &Arc<S>) {
    let (key, token) = lapsed(store, "expiring", for_good()).await;
    let briefly = Resolution::executed(record(), Duration::from_millis(100));
    assert_eq!(resolve(store, &key, token, &briefly).await, Resolved::Yes);
    until(async || get(store, &key).await, Option::is_none).await;
    assert_eq!(claim(store, &key, request()).await, Claim::Acquired { attempt: 1 });
}
