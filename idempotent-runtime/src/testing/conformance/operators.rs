//! The rules about the view and the actions of operators.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::key::RecordKey;
use crate::policy::values::AfterCrash;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::contract::StoreAdmin;
use crate::store::entry::{Cursor, EntryState, Page};
use crate::testing::conformance::fixtures::{
    LONG, claim, complete, fingerprint, get, lapse, purge, record, release, request, unique_key, until,
};

/// After a purge, no token holds the key.
///
/// # Panics
///
/// Panics if the store breaks the rule.
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
/// Panics if the store breaks the rule.
pub async fn get_describes_entry<S: StoreAdmin>(store: &Arc<S>) {
    let (key, first) = (unique_key("entry"), ClaimRequest { lease: LONG / 2, ..request() });
    let _ = claim(store, &key, first).await;
    let entry = get(store, &key).await.expect("the key has an entry");
    assert_eq!((&entry.key, entry.fingerprint), (&key, fingerprint(1)));
    assert!(entry.expires_in.is_some_and(|left| left <= LONG && left > LONG / 2), "{entry:?}");
    let EntryState::Claimed { attempt: 1, lease: Some(lease), token } = entry.state else { panic!("{entry:?}") };
    assert!(lease <= LONG / 2 && lease > LONG / 4, "{lease:?}");
    assert_eq!(token, first.token, "an entry tells whose claim it is, and by that since when");
    lapse(store, &key, first.token).await;
    let entry = get(store, &key).await.expect("the key has an entry");
    assert_eq!(entry.state, EntryState::Claimed { attempt: 1, lease: None, token: first.token });
    let _ = complete(store, &key, first.token, &record(), LONG).await;
    let entry = get(store, &key).await.expect("the key has an entry");
    let Record { status, recorded_at, .. } = record();
    assert_eq!(entry.state, EntryState::Completed { status, body_bytes: Some(4), recorded_at });
}

/// Following the pages shows every entry once, for each page size.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_listing_shows_every_entry_once<S: StoreAdmin>(store: &Arc<S>) {
    let entries = entries(store, "listed").await;
    let mut expected = [entries.claims, entries.records].concat();
    expected.sort();
    for limit in PAGES {
        let found = follow(limit, async |cursor| Some(store.list(cursor, limit).await.expect("the store lists"))).await;
        assert_eq!(of(&expected, found), expected, "in pages of {limit}");
    }
}

/// [`StoreAdmin::claims`] shows every live claim once, including claims with an expired lease, and no record. A store
/// with the provided method passes.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_listing_of_claims_shows_no_record<S: StoreAdmin>(store: &Arc<S>) {
    if store.claims(None, 1).await.expect("the store lists").is_none() {
        return;
    }
    let Entries { mut claims, records } = entries(store, "claims-listed").await;
    let all = [claims.clone(), records, expired_claims(store, "claims-listed").await].concat();
    claims.sort();
    for limit in PAGES {
        let found = follow(limit, async |cursor| store.claims(cursor, limit).await.expect("the store lists")).await;
        assert_eq!(of(&all, found), claims, "in pages of {limit}");
    }
}

const PAGES: [usize; 3] = [1, 2, 1000];

struct Entries {
    claims: Vec<RecordKey>,
    records: Vec<RecordKey>,
}

/// Creates a running claim, one with an expired lease, one of unknown outcome, and three records.
async fn entries<S: StoreAdmin>(store: &Arc<S>, name: &str) -> Entries {
    let (mut claims, mut records) = (Vec::new(), Vec::new());
    for has_lapsed in [None, Some(AfterCrash::Rerun), Some(AfterCrash::Reject)] {
        let (claimed, recorded, completed) = (unique_key(name), unique_key(name), request());
        let request = ClaimRequest { after_crash: has_lapsed.unwrap_or(AfterCrash::Rerun), ..request() };
        let _ = claim(store, &claimed, request).await;
        if has_lapsed.is_some() {
            lapse(store, &claimed, request.token).await;
        }
        let _ = claim(store, &recorded, completed).await;
        let _ = complete(store, &recorded, completed.token, &record(), LONG).await;
        claims.push(claimed);
        records.push(recorded);
    }
    Entries { claims, records }
}

/// Creates claims that have expired. The store need not have deleted them, and they must not hide other claims.
async fn expired_claims<S: StoreAdmin>(store: &Arc<S>, name: &str) -> Vec<RecordKey> {
    const TTL: Duration = Duration::from_millis(100);

    let expired: Vec<_> = (0..16).map(|_| unique_key(name)).collect();
    for key in &expired {
        let _ = claim(store, key, ClaimRequest { lease: TTL / 2, ttl: TTL, ..request() }).await;
    }
    for key in &expired {
        until(async || get(store, key).await, Option::is_none).await;
    }
    expired
}

/// Returns the keys on all pages of at most `limit` entries.
async fn follow(limit: usize, mut page_at: impl AsyncFnMut(Option<Cursor>) -> Option<Page>) -> Vec<RecordKey> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let page = page_at(cursor).await.expect("a store that has listed claims lists them again");
        assert!(page.entries.len() <= limit, "a page of {limit} has {} entries", page.entries.len());
        found.extend(page.entries.into_iter().map(|entry| entry.key));
        cursor = page.next;
        if cursor.is_none() {
            return found;
        }
    }
}

/// Returns the found keys that are among `expected`, sorted. The store may have other keys.
fn of(expected: &[RecordKey], mut found: Vec<RecordKey>) -> Vec<RecordKey> {
    found.retain(|key| expected.contains(key));
    found.sort();
    found
}

/// [`StoreAdmin::claims`] shows every claim once and no ended claim, for each page size, if the store has an index of
/// claims.
///
/// # Panics
///
/// Panics if the store breaks the rule.
pub async fn a_listing_of_claims_shows_no_ended_claim<S: StoreAdmin>(store: &Arc<S>) {
    let keys: Vec<_> = (0..6).map(|_| unique_key("indexed")).collect();
    let tokens: Vec<_> = keys.iter().map(|_| Token::unique()).collect();
    for (index, (key, token)) in keys.iter().zip(&tokens).enumerate() {
        let after_crash = if index % 2 == 0 { AfterCrash::Rerun } else { AfterCrash::Reject };
        let request = ClaimRequest { token: *token, after_crash, ..request() };
        assert_eq!(claim(store, key, request).await, Claim::Acquired { attempt: 1 });
    }
    lapse(store, &keys[0], tokens[0]).await;
    lapse(store, &keys[1], tokens[1]).await;
    let Some(mut listed) = claims_among(store, &keys, 1000).await else { return };
    for limit in [1000, 2, 1] {
        assert_eq!(listed, keys.iter().cloned().collect(), "what is in flight and what has lapsed");
        listed = claims_among(store, &keys, limit).await.unwrap_or_default();
    }
    for (key, token) in keys[..4].iter().zip(&tokens) {
        assert_eq!(complete(store, key, *token, &record(), LONG).await, Held::Yes);
    }
    assert_eq!(release(store, &keys[4], tokens[4]).await, Held::Yes);
    assert!(purge(store, &keys[5]).await);
    assert_eq!(claims_among(store, &keys, 1000).await, Some(BTreeSet::new()), "they are records, or gone");
    for key in &keys[..2] {
        assert!(matches!(claim(store, key, request()).await, Claim::Completed(_)));
        let _ = claim(store, &keys[4], request()).await;
    }
    assert_eq!(claims_among(store, &keys, 1000).await, Some([keys[4].clone()].into()), "a replay is no claim");
    assert!(purge(store, &keys[4]).await);
}

/// Returns the given keys that the index of claims has. Panics if it has one of them twice.
async fn claims_among<S: StoreAdmin>(store: &Arc<S>, keys: &[RecordKey], limit: usize) -> Option<BTreeSet<RecordKey>> {
    let (mut found, mut cursor) = (BTreeSet::new(), None);
    loop {
        let page = store.claims(cursor, limit).await.expect("the store lists claims")?;
        assert!(page.entries.len() <= limit, "a page of {limit} has {} entries", page.entries.len());
        for entry in page.entries.into_iter().filter(|entry| keys.contains(&entry.key)) {
            assert!(matches!(entry.state, EntryState::Claimed { .. }), "no claim: {entry:?}");
            assert!(found.insert(entry.key.clone()), "a second time: {entry:?}");
        }
        cursor = page.next;
        if cursor.is_none() {
            return Some(found);
        }
    }
}

/// [`StoreAdmin::delete_expired`] deletes every expired entry and no live one.
///
/// # Panics
///
/// Panics if the store breaks the rule.
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
