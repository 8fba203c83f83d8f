//! What operators see and do.

use std::sync::Arc;
use std::time::Duration;

use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held};
use crate::store::contract::StoreAdmin;
use crate::store::entry::{Cursor, EntryState};
use crate::testing::conformance::fixtures::{
    LONG, claim, complete, fingerprint, get, lapse, purge, record, request, unique_key, until,
};

/// After a purge, no token holds the key.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_purge_removes_claims_and_records<S: StoreAdmin>(store: &Arc<S>) {
    let (key, first) = (unique_key("purged"), request());
    let _ = claim(store, &key, first).await;
    assert!(purge(store, &key).await);
    assert!(!purge(store, &key).await, "there is nothing left to purge");
    assert_eq!(complete(store, &key, first.token, &record(), LONG).await, Held::No);
    let second = request();
    assert_eq!(claim(store, &key, second).await, Claim::Acquired { attempt: 1 });
    let _ = complete(store, &key, second.token, &record(), LONG).await;
    assert!(purge(store, &key).await);
    assert_eq!(claim(store, &key, request()).await, Claim::Acquired { attempt: 1 });
}

/// [`StoreAdmin::get`] distinguishes claims with a live lease, claims with an expired lease, and records.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn get_describes_entry<S: StoreAdmin>(store: &Arc<S>) {
    let (key, first) = (unique_key("entry"), ClaimRequest { lease: LONG / 2, ..request() });
    let _ = claim(store, &key, first).await;
    let entry = get(store, &key).await.expect("the claim stands");
    assert_eq!((&entry.key, entry.fingerprint), (&key, fingerprint(1)));
    assert!(entry.expires_in.is_some_and(|left| left <= LONG && left > LONG / 2), "{entry:?}");
    let EntryState::Claimed { attempt: 1, lease: Some(lease), token } = entry.state else { panic!("{entry:?}") };
    assert!(lease <= LONG / 2 && lease > LONG / 4, "{lease:?}");
    assert_eq!(token, first.token, "an entry tells whose claim it is, and by that since when");
    lapse(store, &key, first.token).await;
    let entry = get(store, &key).await.expect("the claim stands");
    assert_eq!(entry.state, EntryState::Claimed { attempt: 1, lease: None, token: first.token });
    let _ = complete(store, &key, first.token, &record(), LONG).await;
    let entry = get(store, &key).await.expect("the record stands");
    let Record { status, recorded_at, .. } = record();
    assert_eq!(entry.state, EntryState::Completed { status, body_bytes: Some(4), recorded_at });
}

/// Following the pages shows every entry once, whatever the page size.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_listing_shows_every_entry_once<S: StoreAdmin>(store: &Arc<S>) {
    let mut expected: Vec<_> = (0..5).map(|_| unique_key("listed")).collect();
    for (index, key) in expected.iter().enumerate() {
        let request = request();
        let _ = claim(store, key, request).await;
        if index % 2 == 0 {
            let _ = complete(store, key, request.token, &record(), LONG).await;
        }
    }
    for limit in [1, 2, 1000] {
        let mut found = Vec::new();
        let mut cursor: Option<Cursor> = None;
        loop {
            let page = store.list(cursor, limit).await.expect("the store lists");
            assert!(page.entries.len() <= limit, "a page of {limit} has {} entries", page.entries.len());
            found.extend(page.entries.into_iter().map(|entry| entry.key).filter(|key| expected.contains(key)));
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "in pages of {limit}");
    }
}

/// [`StoreAdmin::delete_expired`] deletes every expired entry and no live one.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn delete_expired_removes_expired_only<S: StoreAdmin>(store: &Arc<S>) {
    let (alive, dead) = (unique_key("alive"), unique_key("dead"));
    let (first, second) = (request(), request());
    let _ = claim(store, &alive, first).await;
    let _ = claim(store, &dead, second).await;
    let _ = complete(store, &dead, second.token, &record(), Duration::from_millis(100)).await;
    until(async || get(store, &dead).await, Option::is_none).await;
    until(async || store.delete_expired().await.expect("the store deletes expired entries"), |&deleted| deleted == 0)
        .await;
    assert_eq!(get(store, &dead).await, None);
    assert_eq!(complete(store, &alive, first.token, &record(), LONG).await, Held::Yes);
}
