//! The rules of the [`Store`] contract, one function each, to be run against a store of your own.
//!
//! [`all`] runs every rule. Keys are drawn anew by every call, so that a store that holds other data can be tested, and
//! nothing is wiped. Rules about time wait with [`tokio::time`]: a store on that clock can be tested under
//! `tokio::time::pause`, any other waits for some seconds in all.
//!
//! Each function panics with what was expected and what came.
//!
//! # A store of your own
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::sync::{Arc, Mutex};
//! use std::time::Duration;
//!
//! use idempotent_runtime::store::*;
//! use idempotent_runtime::testing::conformance;
//! use idempotent_runtime::{Fingerprint, Record, RecordKey};
//! use tokio::time::Instant;
//!
//! /// Everything under one lock.
//! #[derive(Default)]
//! struct SimpleStore(Mutex<BTreeMap<RecordKey, Row>>);
//!
//! struct Row {
//!     token: Token,
//!     fingerprint: Fingerprint,
//!     attempt: u32,
//!     lease_until: Instant,
//!     ttl: Duration,
//!     expires_at: Instant,
//!     record: Option<Record>,
//! }
//!
//! impl SimpleStore {
//!     /// What stands under the key and is alive, if `which` says so, is handed to `change`.
//!     fn with<T>(&self, key: &RecordKey, which: impl Fn(&Row) -> bool, change: impl FnOnce(&mut Row) -> T) -> Option<T> {
//!         let mut rows = self.0.lock().unwrap();
//!         rows.get_mut(key).filter(|row| row.expires_at > Instant::now() && which(row)).map(change)
//!     }
//!
//!     fn entry(key: &RecordKey, row: &Row) -> Entry {
//!         let now = Instant::now();
//!         let state = match &row.record {
//!             None => EntryState::Claimed {
//!                 attempt: row.attempt,
//!                 lease: (row.lease_until > now).then(|| row.lease_until - now),
//!             },
//!             Some(record) => EntryState::Completed {
//!                 status: record.status,
//!                 body_bytes: record.body_bytes().map(|body| body.len() as u64),
//!                 recorded_at: record.recorded_at,
//!             },
//!         };
//!         Entry { key: key.clone(), fingerprint: row.fingerprint, state, expires_in: row.expires_at - now }
//!     }
//! }
//!
//! impl Store for SimpleStore {
//!     async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
//!         let now = Instant::now();
//!         let mut rows = self.0.lock().unwrap();
//!         let attempt = match rows.get(key).filter(|row| row.expires_at > now) {
//!             None => 1,
//!             Some(Row { record: Some(record), .. }) => return Ok(Claim::Completed(record.clone())),
//!             Some(row) if row.token == request.token => return Ok(Claim::Acquired { attempt: row.attempt }),
//!             Some(row) if row.lease_until > now => return Ok(Claim::InFlight { fingerprint: row.fingerprint }),
//!             Some(row) if request.after_crash == AfterCrash::Rerun && row.fingerprint == request.fingerprint => {
//!                 row.attempt + 1
//!             }
//!             Some(row) => return Ok(Claim::Lapsed { fingerprint: row.fingerprint }),
//!         };
//!         let ClaimRequest { token, fingerprint, lease, ttl, .. } = request;
//!         let (lease_until, expires_at) = (now + lease, now + ttl);
//!         rows.insert(key.clone(), Row { token, fingerprint, attempt, lease_until, ttl, expires_at, record: None });
//!         Ok(Claim::Acquired { attempt })
//!     }
//!
//!     async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
//!         let renewed = self.with(key, |row| row.token == token && row.record.is_none(), |row| {
//!             row.lease_until = Instant::now() + lease;
//!             row.expires_at = Instant::now() + row.ttl;
//!         });
//!         Ok(if renewed.is_some() { Held::Yes } else { Held::No })
//!     }
//!
//!     async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
//!         let completed = self.with(key, |row| row.token == token, |row| {
//!             if row.record.is_none() {
//!                 row.record = Some(record);
//!                 row.expires_at = Instant::now() + ttl;
//!             }
//!         });
//!         Ok(if completed.is_some() { Held::Yes } else { Held::No })
//!     }
//!
//!     async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
//!         let released = self.with(key, |row| row.token == token && row.record.is_none(), |row| {
//!             row.expires_at = Instant::now();
//!         });
//!         Ok(if released.is_some() { Held::Yes } else { Held::No })
//!     }
//!
//!     async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
//!         Ok(self.with(key, |_| true, |row| Self::entry(key, row)))
//!     }
//!
//!     async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
//!         Ok(self.with(key, |_| true, |row| row.expires_at = Instant::now()).is_some())
//!     }
//!
//!     async fn sweep(&self) -> Result<usize, StoreError> {
//!         let mut rows = self.0.lock().unwrap();
//!         let before = rows.len();
//!         rows.retain(|_, row| row.expires_at > Instant::now());
//!         Ok(before - rows.len())
//!     }
//!
//!     async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
//!         let rows = self.0.lock().unwrap();
//!         let from = cursor.map_or(String::new(), |cursor| cursor.0);
//!         let mut living = rows.iter().filter(|(_, row)| row.expires_at > Instant::now());
//!         let mut after = living.by_ref().skip_while(|(key, _)| key.as_str() < from.as_str()).peekable();
//!         let entries = after.by_ref().take(limit).map(|(key, row)| Self::entry(key, row)).collect();
//!         let next = after.peek().map(|(key, _)| Cursor(key.as_str().to_owned()));
//!         Ok(Page { entries, next })
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! conformance::all(SimpleStore::default()).await;
//! # });
//! ```

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::time::{Instant, sleep};

use crate::store::{AfterCrash, Claim, ClaimRequest, Cursor, Entry, EntryState, Held, Store, Token};
use crate::{Fingerprint, Record, RecordKey, RecordedBody};

/// Longer than any rule takes.
const LONG: Duration = Duration::from_mins(10);

/// How long a rule waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// How much earlier than asked for a store may judge, for clocks in whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(5);

/// Runs every rule.
///
/// # Panics
///
/// When the store breaks one.
pub async fn all<S: Store>(store: S) {
    let store = Arc::new(store);
    the_first_claim_is_acquired_and_the_second_is_in_flight(&store).await;
    of_64_concurrent_claims_one_is_acquired(&store).await;
    a_retried_claim_recognises_its_token(&store).await;
    a_record_comes_back_whole(&store).await;
    every_status_comes_back(&store).await;
    a_second_completion_changes_nothing(&store).await;
    a_record_is_not_touched_by_its_token(&store).await;
    nothing_stands_under_an_unknown_key(&store).await;
    a_lease_that_runs_out_is_taken_over_as_the_next_attempt(&store).await;
    a_renewal_keeps_the_claim(&store).await;
    a_lease_of_zero_lapses_at_once(&store).await;
    a_stale_token_can_neither_renew_complete_nor_release(&store).await;
    another_fingerprint_never_takes_over(&store).await;
    refuse_never_takes_over(&store).await;
    a_late_holder_completes_while_nobody_took_over(&store).await;
    a_release_frees_the_key_and_the_attempts(&store).await;
    a_record_expires(&store).await;
    a_claim_expires_after_its_last_sign_of_life(&store).await;
    different_keys_never_meet(&store).await;
    a_purge_removes_claims_and_records(&store).await;
    an_entry_says_what_stands_there(&store).await;
    a_listing_shows_every_entry_once(&store).await;
    a_sweep_removes_what_is_past_its_time_and_nothing_else(&store).await;
}

/// Of two claims on one key, the first gets attempt 1 and the second learns the fingerprint.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn the_first_claim_is_acquired_and_the_second_is_in_flight<S: Store>(store: &Arc<S>) {
    let key = unique_key("first");
    assert_eq!(claim(store, &key, request()).await, Claim::Acquired { attempt: 1 });
    let in_flight = Claim::InFlight { fingerprint: fingerprint(1) };
    assert_eq!(claim(store, &key, request()).await, in_flight);
    let other = ClaimRequest { fingerprint: fingerprint(2), ..request() };
    assert_eq!(claim(store, &key, other).await, in_flight, "the fingerprint is the holder's");
}

/// However many ask at once, one gets the claim.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn of_64_concurrent_claims_one_is_acquired<S: Store>(store: &Arc<S>) {
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

/// A claim that is sent again, because its answer was lost, is not its own duplicate.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_retried_claim_recognises_its_token<S: Store>(store: &Arc<S>) {
    let key = unique_key("retried");
    let request = request();
    for _ in 0..3 {
        assert_eq!(claim(store, &key, request).await, Claim::Acquired { attempt: 1 });
    }
}

/// Headers as bytes and in order, empty and 4 MiB bodies, and bodies that were not recorded.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_record_comes_back_whole<S: Store>(store: &Arc<S>) {
    let large: Bytes = (0..4 * 1024 * 1024_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for body in [
        RecordedBody::Whole(Bytes::new()),
        RecordedBody::Whole(Bytes::from_static(b"\x00\xff not text \xc3\x28")),
        RecordedBody::Whole(large),
        RecordedBody::NotRecorded,
    ] {
        let record = Record { body, ..record() };
        let (key, request) = (unique_key("round-trip"), request());
        let _ = claim(store, &key, request).await;
        assert_eq!(complete(store, &key, request.token, &record, LONG).await, Held::Yes);
        let Claim::Completed(found) = claim(store, &key, self::request()).await else {
            panic!("the record is not there")
        };
        assert_eq!(found.headers, record.headers, "headers as bytes, multi-valued and in order");
        assert!(found == record, "{:?} came back as {:?}", summary(&record), summary(&found));
    }
}

/// A record of any final status is kept.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn every_status_comes_back<S: Store>(store: &Arc<S>) {
    for status in [200, 201, 204, 301, 402, 409, 418, 451, 500, 503, 599, 999] {
        let record = Record { status: StatusCode::from_u16(status).expect("a status"), ..record() };
        let (key, request) = (unique_key("status"), request());
        let _ = claim(store, &key, request).await;
        let _ = complete(store, &key, request.token, &record, LONG).await;
        assert_eq!(claim(store, &key, self::request()).await, Claim::Completed(record));
    }
}

/// A completion that is sent again, because its answer was lost, succeeds and leaves the first record.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_second_completion_changes_nothing<S: Store>(store: &Arc<S>) {
    let (key, request) = (unique_key("completed-twice"), request());
    let _ = claim(store, &key, request).await;
    assert_eq!(complete(store, &key, request.token, &record(), LONG).await, Held::Yes);
    let other = Record { status: StatusCode::IM_A_TEAPOT, ..record() };
    assert_eq!(complete(store, &key, request.token, &other, LONG).await, Held::Yes);
    assert_eq!(claim(store, &key, self::request()).await, Claim::Completed(record()));
}

/// Once a record stands, its own token can neither renew nor release it, and other claims read it.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_record_is_not_touched_by_its_token<S: Store>(store: &Arc<S>) {
    let (key, request) = (unique_key("settled"), request());
    let _ = claim(store, &key, request).await;
    let _ = complete(store, &key, request.token, &record(), LONG).await;
    assert_eq!(renew(store, &key, request.token, Duration::ZERO).await, Held::No);
    assert_eq!(release(store, &key, request.token).await, Held::No);
    assert_eq!(claim(store, &key, request).await, Claim::Completed(record()), "for its own token too");
    let other = ClaimRequest { fingerprint: fingerprint(2), ..self::request() };
    assert_eq!(claim(store, &key, other).await, Claim::Completed(record()), "the engine compares fingerprints");
}

/// No token holds a key that nobody claimed.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn nothing_stands_under_an_unknown_key<S: Store>(store: &Arc<S>) {
    let (key, token) = (unique_key("unknown"), Token::unique());
    assert_eq!(renew(store, &key, token, LONG).await, Held::No);
    assert_eq!(complete(store, &key, token, &record(), LONG).await, Held::No);
    assert_eq!(release(store, &key, token).await, Held::No);
    assert_eq!(get(store, &key).await, None);
    assert!(!purge(store, &key).await);
}

/// A claim that nobody renews is taken over when its lease is over, and not before.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_lease_that_runs_out_is_taken_over_as_the_next_attempt<S: Store>(store: &Arc<S>) {
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
/// When the store breaks the rule.
pub async fn a_renewal_keeps_the_claim<S: Store>(store: &Arc<S>) {
    const LEASE: Duration = Duration::from_secs(1);

    let (key, request) = (unique_key("renewed"), ClaimRequest { lease: LEASE, ..request() });
    let _ = claim(store, &key, request).await;
    assert_eq!(renew(store, &key, request.token, LONG).await, Held::Yes);
    sleep(LEASE + LEASE / 2).await;
    assert_eq!(claim(store, &key, self::request()).await, Claim::InFlight { fingerprint: fingerprint(1) });
    assert_eq!(complete(store, &key, request.token, &record(), LONG).await, Held::Yes);
}

/// A holder that knows that it cannot go on says so with a lease of zero.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_lease_of_zero_lapses_at_once<S: Store>(store: &Arc<S>) {
    let (key, first) = (unique_key("zero"), request());
    let _ = claim(store, &key, first).await;
    lapse(store, &key, first.token).await;
    assert_eq!(claim(store, &key, request()).await, Claim::Acquired { attempt: 2 });
}

/// Whoever was followed by another one has no say any more.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_stale_token_can_neither_renew_complete_nor_release<S: Store>(store: &Arc<S>) {
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

/// A claim whose lease ran out is only taken over by a request that asks for the same.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn another_fingerprint_never_takes_over<S: Store>(store: &Arc<S>) {
    let (key, first) = (unique_key("other-fingerprint"), request());
    let _ = claim(store, &key, first).await;
    lapse(store, &key, first.token).await;
    let other = ClaimRequest { fingerprint: fingerprint(2), ..request() };
    assert_eq!(claim(store, &key, other).await, Claim::Lapsed { fingerprint: fingerprint(1) });
    assert_eq!(claim(store, &key, request()).await, Claim::Acquired { attempt: 2 });
}

/// Under [`AfterCrash::Refuse`] a claim whose lease ran out stays as it is.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn refuse_never_takes_over<S: Store>(store: &Arc<S>) {
    let (key, first) = (unique_key("refuse"), request());
    let _ = claim(store, &key, first).await;
    let refuse = || ClaimRequest { after_crash: AfterCrash::Refuse, ..request() };
    assert_eq!(claim(store, &key, refuse()).await, Claim::InFlight { fingerprint: fingerprint(1) });
    lapse(store, &key, first.token).await;
    for _ in 0..3 {
        assert_eq!(claim(store, &key, refuse()).await, Claim::Lapsed { fingerprint: fingerprint(1) });
    }
    assert_eq!(claim(store, &key, request()).await, Claim::Acquired { attempt: 2 }, "the request's own policy decides");
}

/// A holder that is late but was not followed can still complete or renew.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_late_holder_completes_while_nobody_took_over<S: Store>(store: &Arc<S>) {
    let (key, late) = (unique_key("late"), request());
    let _ = claim(store, &key, late).await;
    lapse(store, &key, late.token).await;
    assert_eq!(renew(store, &key, late.token, LONG).await, Held::Yes);
    assert_eq!(claim(store, &key, request()).await, Claim::InFlight { fingerprint: fingerprint(1) });
    lapse(store, &key, late.token).await;
    assert_eq!(complete(store, &key, late.token, &record(), LONG).await, Held::Yes);
    assert_eq!(claim(store, &key, request()).await, Claim::Completed(record()));
}

/// After a release the key is new.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_release_frees_the_key_and_the_attempts<S: Store>(store: &Arc<S>) {
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

/// A record is there for its time to live, and gone afterwards.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_record_expires<S: Store>(store: &Arc<S>) {
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

/// A claim of a dead process is remembered for its time to live, counted from its last sign of life.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_claim_expires_after_its_last_sign_of_life<S: Store>(store: &Arc<S>) {
    const TTL: Duration = Duration::from_secs(1);

    let (key, first) = (unique_key("claim-expires"), ClaimRequest { ttl: TTL, lease: TTL, ..request() });
    let _ = claim(store, &key, first).await;
    sleep(TTL / 2).await;
    let begun = Instant::now();
    lapse(store, &key, first.token).await;
    until(async || get(store, &key).await, Option::is_none).await;
    assert!(begun.elapsed() + ROUNDING >= TTL, "forgotten {:?} after the renewal", begun.elapsed());
    assert_eq!(claim(store, &key, request()).await, Claim::Acquired { attempt: 1 });
}

/// Keys that look alike when they are glued together are different ones.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn different_keys_never_meet<S: Store>(store: &Arc<S>) {
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

/// A purge leaves nothing behind that a token could hold.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_purge_removes_claims_and_records<S: Store>(store: &Arc<S>) {
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

/// [`Store::get`] tells claims in their lease, claims past it, and records.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn an_entry_says_what_stands_there<S: Store>(store: &Arc<S>) {
    let (key, first) = (unique_key("entry"), ClaimRequest { lease: LONG / 2, ..request() });
    let _ = claim(store, &key, first).await;
    let entry = get(store, &key).await.expect("the claim stands");
    assert_eq!((&entry.key, entry.fingerprint), (&key, fingerprint(1)));
    assert!(entry.expires_in <= LONG && entry.expires_in > LONG / 2, "{entry:?}");
    let EntryState::Claimed { attempt: 1, lease: Some(lease) } = entry.state else { panic!("{entry:?}") };
    assert!(lease <= LONG / 2 && lease > LONG / 4, "{lease:?}");
    lapse(store, &key, first.token).await;
    let entry = get(store, &key).await.expect("the claim stands");
    assert_eq!(entry.state, EntryState::Claimed { attempt: 1, lease: None });
    let _ = complete(store, &key, first.token, &record(), LONG).await;
    let entry = get(store, &key).await.expect("the record stands");
    let Record { status, recorded_at, .. } = record();
    assert_eq!(entry.state, EntryState::Completed { status, body_bytes: Some(4), recorded_at });
}

/// Following the pages shows every entry that stands there once, whatever their size.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_listing_shows_every_entry_once<S: Store>(store: &Arc<S>) {
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

/// After a sweep nothing that is past its time is counted again, and all that is alive is still there.
///
/// # Panics
///
/// When the store breaks the rule.
pub async fn a_sweep_removes_what_is_past_its_time_and_nothing_else<S: Store>(store: &Arc<S>) {
    let (alive, dead) = (unique_key("alive"), unique_key("dead"));
    let (first, second) = (request(), request());
    let _ = claim(store, &alive, first).await;
    let _ = claim(store, &dead, second).await;
    let _ = complete(store, &dead, second.token, &record(), Duration::from_millis(100)).await;
    until(async || get(store, &dead).await, Option::is_none).await;
    until(async || store.sweep().await.expect("the store sweeps"), |&swept| swept == 0).await;
    assert_eq!(get(store, &dead).await, None);
    assert_eq!(complete(store, &alive, first.token, &record(), LONG).await, Held::Yes);
}

fn unique_key(name: &str) -> RecordKey {
    RecordKey::new("conformance", Some(name), &format!("{:x}", Token::unique().as_u128()))
}

fn fingerprint(seed: u8) -> Fingerprint {
    Fingerprint::from_bytes([seed; 32])
}

fn request() -> ClaimRequest {
    ClaimRequest {
        token: Token::unique(),
        fingerprint: fingerprint(1),
        lease: LONG,
        ttl: LONG,
        after_crash: AfterCrash::Rerun,
    }
}

fn record() -> Record {
    let header = |name, value: &[u8]| {
        (HeaderName::from_static(name), HeaderValue::from_bytes(value).expect("the bytes are allowed in a header"))
    };
    Record {
        status: StatusCode::CREATED,
        headers: vec![
            header("content-type", b"text/plain"),
            header("x-many", b"second"),
            header("x-many", b"first"),
            header("x-many", b""),
            header("x-latin", b"caf\xe9"),
            header("x-bytes", b"\xff\xfe\x80\t|\"{}"),
        ],
        body: RecordedBody::Whole(Bytes::from_static(b"paid")),
        fingerprint: fingerprint(1),
        recorded_at: UNIX_EPOCH + Duration::from_millis(1_795_000_000_123),
    }
}

fn summary(record: &Record) -> (StatusCode, Option<usize>, SystemTime, Fingerprint) {
    (record.status, record.body_bytes().map(Bytes::len), record.recorded_at, record.fingerprint)
}

async fn claim<S: Store>(store: &Arc<S>, key: &RecordKey, request: ClaimRequest) -> Claim {
    store.claim(key, request).await.expect("the store claims")
}

async fn renew<S: Store>(store: &Arc<S>, key: &RecordKey, token: Token, lease: Duration) -> Held {
    store.renew(key, token, lease).await.expect("the store renews")
}

async fn complete<S: Store>(store: &Arc<S>, key: &RecordKey, token: Token, record: &Record, ttl: Duration) -> Held {
    store.complete(key, token, record.clone(), ttl).await.expect("the store completes")
}

async fn release<S: Store>(store: &Arc<S>, key: &RecordKey, token: Token) -> Held {
    store.release(key, token).await.expect("the store releases")
}

async fn get<S: Store>(store: &Arc<S>, key: &RecordKey) -> Option<Entry> {
    store.get(key).await.expect("the store answers")
}

async fn purge<S: Store>(store: &Arc<S>, key: &RecordKey) -> bool {
    store.purge(key).await.expect("the store purges")
}

async fn lapse<S: Store>(store: &Arc<S>, key: &RecordKey, token: Token) {
    assert_eq!(renew(store, key, token, Duration::ZERO).await, Held::Yes);
}

/// Asks again until the answer is the awaited one.
async fn until<T: std::fmt::Debug>(mut ask: impl AsyncFnMut() -> T, awaited: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if awaited(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "still {answer:?} after {PATIENCE:?}");
        sleep(Duration::from_millis(20)).await;
    }
}
