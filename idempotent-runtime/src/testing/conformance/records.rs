//! The rules about records.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::time::Instant;

use crate::key::RecordKey;
use crate::record::{Record, RecordedBody};
use crate::store::claim::{Claim, ClaimRequest, Held};
use crate::store::contract::StoreAdmin;
use crate::store::entry::EntryState;
use crate::testing::conformance::fixtures::{
    LONG, ROUNDING, claim, complete, fingerprint, get, lapse, record, release, renew, request, summary, unique_key,
    until,
};

/// A record keeps all of its parts: headers as bytes and in order, the mark of sensitive values, empty bodies, bodies
/// of 4 MiB, and bodies that were not recorded.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_record_comes_back_whole<S: StoreAdmin>(store: &Arc<S>) {
    let large: Bytes = (0..4 * 1024 * 1024_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for body in [
        RecordedBody::Whole(Bytes::new()),
        RecordedBody::Whole(Bytes::from_static(b"\x00\xff not text \xc3\x28")),
        RecordedBody::Whole(large),
        RecordedBody::NotRecorded,
        RecordedBody::Sealed(Bytes::from_static(b"\x00\xff not text \xc3\x28")),
    ] {
        let is_sealed = matches!(body, RecordedBody::Sealed(_));
        let headers = if is_sealed { Vec::new() } else { record().headers };
        let record = Record { headers, body, ..record() };
        let (key, request) = (unique_key("round-trip"), request());
        let _ = claim(store, &key, request).await;
        assert_eq!(complete(store, &key, request.token, &record, LONG).await, Held::Yes);
        let Claim::Completed(found) = claim(store, &key, self::request()).await else {
            panic!("the record is not there")
        };
        assert_eq!(found.headers, record.headers, "headers as bytes, multi-valued and in order");
        let sensitive =
            |record: &Record| record.headers.iter().map(|(_, value)| value.is_sensitive()).collect::<Vec<_>>();
        assert_eq!(sensitive(&found), sensitive(&record), "which values are sensitive");
        assert!(found == record, "{:?} came back as {:?}", summary(&record), summary(&found));
    }
}

/// A record of any final status is kept.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn every_status_comes_back<S: StoreAdmin>(store: &Arc<S>) {
    for status in [200, 201, 204, 301, 402, 409, 418, 451, 500, 503, 599, 999] {
        let record = Record { status: StatusCode::from_u16(status).expect("a status"), ..record() };
        let (key, request) = (unique_key("status"), request());
        let _ = claim(store, &key, request).await;
        let _ = complete(store, &key, request.token, &record, LONG).await;
        assert_eq!(claim(store, &key, self::request()).await, Claim::Completed(record));
    }
}

/// A completion that is repeated because its answer was lost succeeds, and keeps the first record.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_second_completion_changes_nothing<S: StoreAdmin>(store: &Arc<S>) {
    let (key, request) = (unique_key("completed-twice"), request());
    let _ = claim(store, &key, request).await;
    assert_eq!(complete(store, &key, request.token, &record(), LONG).await, Held::Yes);
    let other = Record { status: StatusCode::IM_A_TEAPOT, ..record() };
    assert_eq!(complete(store, &key, request.token, &other, LONG).await, Held::Yes);
    assert_eq!(claim(store, &key, self::request()).await, Claim::Completed(record()));
}

/// A record cannot be renewed or released by its own token. Other claims read it.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_record_is_not_touched_by_its_token<S: StoreAdmin>(store: &Arc<S>) {
    let (key, request) = (unique_key("settled"), request());
    let _ = claim(store, &key, request).await;
    let _ = complete(store, &key, request.token, &record(), LONG).await;
    assert_eq!(renew(store, &key, request.token, Duration::ZERO).await, Held::No);
    assert_eq!(release(store, &key, request.token).await, Held::No);
    assert_eq!(claim(store, &key, request).await, Claim::Completed(record()), "for its own token too");
    let other = ClaimRequest { fingerprint: fingerprint(2), ..self::request() };
    assert_eq!(claim(store, &key, other).await, Claim::Completed(record()), "the engine compares fingerprints");
}

/// A record exists until its ttl expires, and not longer.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_record_expires<S: StoreAdmin>(store: &Arc<S>) {
    const TTL: Duration = Duration::from_secs(1);

    let (key, request) = (unique_key("record-expires"), request());
    let _ = claim(store, &key, request).await;
    let begun = Instant::now();
    let _ = complete(store, &key, request.token, &record(), TTL).await;
    until(async || get(store, &key).await, Option::is_none).await;
    assert!(begun.elapsed() + ROUNDING >= TTL, "gone after {:?} of {TTL:?}", begun.elapsed());
    assert_eq!(renew(store, &key, request.token, LONG).await, Held::No);
    let other = ClaimRequest { fingerprint: fingerprint(2), ..self::request() };
    assert_eq!(claim(store, &key, other).await, Claim::Acquired { attempt: 1 });
}

/// [`Store::extend`](crate::store::Store::extend) moves the expiry of a record to `ttl` from now, earlier or later than
/// it was, and changes nothing else. A store with the provided method passes.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn extend_moves_the_end_of_records_alone<S: StoreAdmin>(store: &Arc<S>) {
    let extend = async |key: &RecordKey, ttl| store.extend(key, ttl).await.expect("the store extends");
    let (key, request) = (unique_key("extended"), request());
    assert_eq!(extend(&key, LONG).await, Held::No, "there is no entry");
    let _ = claim(store, &key, request).await;
    lapse(store, &key, request.token).await;
    assert_eq!(extend(&key, 4 * LONG).await, Held::No, "a claim is no record");
    let entry = get(store, &key).await.expect("the key has an entry");
    assert!(matches!(entry.state, EntryState::Claimed { lease: None, .. }), "its lease has not begun again: {entry:?}");
    assert!(entry.expires_in.is_some_and(|left| left <= LONG), "{entry:?}");
    let _ = complete(store, &key, request.token, &record(), LONG / 4).await;
    if extend(&key, LONG).await == Held::No {
        return;
    }
    let entry = get(store, &key).await.expect("the key has an entry");
    assert!(entry.expires_in.is_some_and(|left| left <= LONG && left > LONG / 2), "{entry:?}");
    assert_eq!(claim(store, &key, self::request()).await, Claim::Completed(record()));
    // This is the step of a handler under `AfterCrash::Reject`, until that handler ends.
    assert_eq!(extend(&key, Duration::MAX).await, Held::Yes, "`Duration::MAX` is a ttl too");
    let entry = get(store, &key).await.expect("the key has an entry");
    assert!(entry.expires_in.is_none_or(|left| left > 1000 * LONG), "{entry:?}");
    assert_eq!(claim(store, &key, self::request()).await, Claim::Completed(record()));
    assert_eq!(extend(&key, Duration::from_millis(100)).await, Held::Yes);
    until(async || get(store, &key).await, Option::is_none).await;
    assert_eq!(extend(&key, LONG).await, Held::No, "it has expired");
}
