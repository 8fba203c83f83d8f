//! Tests from inside: a full disk, a claim whose caller has gone, and processes with clocks of their own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use futures_util::{FutureExt as _, poll};
use http::StatusCode;
use sqlx::{ConnectOptions as _, Executor as _};
use tempfile::TempDir;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::policy::values::AfterCrash;
use crate::record::{Record, RecordedBody};
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::contract::{Store as _, StoreAdmin};
use crate::store::entry::EntryState;
use crate::store::error::StoreError;
use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::open_error::SqliteOpenError;
use crate::store::sqlite::store::SqliteStore;
use crate::store::sqlite::writes::ClaimWrite;

const TTL: Duration = Duration::from_hours(1);

fn file() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("idempotency.db");
    (folder, path)
}

fn record_key(name: &str) -> RecordKey {
    RecordKey::new("charges", None, name)
}

fn claim_request() -> ClaimRequest {
    ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([7; 32])).with_lease(TTL).with_ttl(TTL)
}

fn record(body: Vec<u8>) -> Record {
    Record::new(
        StatusCode::CREATED,
        Vec::new(),
        RecordedBody::Whole(body.into()),
        Fingerprint::from_bytes([7; 32]),
        UNIX_EPOCH,
    )
}

#[tokio::test]
async fn full_disk_is_full_to_claims_and_unavailable_to_completions() {
    let (_folder, path) = file();
    let mut builder = SqliteStore::builder(&path);
    builder.max_pages = Some(20);
    let store = builder.open().await.unwrap();
    let (key, request) = (record_key("running"), claim_request());
    assert_eq!(store.claim(&key, request).await.unwrap(), Claim::Acquired { attempt: 1 });

    let too_large = store.complete(&key, request.token, record(vec![1; 200_000]), TTL).await;
    assert!(matches!(too_large, Err(StoreError::Unavailable(_))), "{too_large:?}");
    let mut granted = 0;
    let rejection = loop {
        match store.claim(&record_key(&format!("{granted}")), claim_request()).await {
            Ok(claim) => assert_eq!(claim, Claim::Acquired { attempt: 1 }),
            Err(rejection) => break rejection,
        }
        granted += 1;
    };
    assert!(matches!(rejection, StoreError::Full), "{rejection:?} after {granted}");

    assert!(store.purge(&record_key("0")).await.unwrap());
    let small = store.complete(&key, request.token, record(Vec::new()), TTL).await.unwrap();
    assert_eq!(small, Held::Yes, "the writer goes on, and the claim is still held");
}

#[tokio::test]
async fn a_full_disk_is_said_when_the_file_is_made() {
    let (_folder, path) = file();
    let mut builder = SqliteStore::builder(&path);
    builder.max_pages = Some(2);

    let error = builder.open().await.unwrap_err();

    assert!(matches!(error, SqliteOpenError::Full { .. }), "{error:?}");
    assert!(error.to_string().starts_with(&format!("no space is left for `{}`", path.display())), "{error}");
}

/// The claim waits for another process's lock until its caller stops waiting. No handler would complete or release it.
#[tokio::test]
async fn a_claim_whose_caller_has_gone_is_not_made() {
    let (_folder, path) = file();
    let store = SqliteStore::open(&path).await.unwrap();
    let mut lock = store.0.options.connect_options().connect().await.unwrap();
    lock.execute("BEGIN IMMEDIATE").await.unwrap();
    let claim = |name| ClaimWrite::new(record_key(name), claim_request(), None, Arc::default());
    let mut gone = store.0.writer.submit(claim("gone")).boxed();
    let mut waiting = store.0.writer.submit(claim("waiting")).boxed();
    assert!(poll!(&mut gone).is_pending() && poll!(&mut waiting).is_pending());

    drop(gone);
    lock.execute("COMMIT").await.unwrap();

    assert_eq!(waiting.await.unwrap(), Claim::Acquired { attempt: 1 });
    assert_eq!(store.get(&record_key("gone")).await.unwrap(), None);
}

const LEASE: Duration = Duration::from_millis(300);
const HOUR: i64 = 60 * 60 * 1000;

/// Opens the file like a process that cannot learn its boot and whose wall clock is ahead by `ahead`.
async fn open_by_other_clock(path: &Path, ahead: i64) -> SqliteStore {
    let mut builder = SqliteStore::builder(path).delete_expired_every(Duration::from_millis(20));
    builder.clock = Some(Clock::alone().ahead(ahead));
    builder.open().await.unwrap()
}

fn brief() -> ClaimRequest {
    ClaimRequest { lease: LEASE, ttl: 2 * LEASE, ..claim_request() }
}

async fn lease_left(store: &SqliteStore, key: &RecordKey) -> Option<Duration> {
    match store.get(key).await.unwrap().unwrap().state {
        EntryState::Claimed { lease, .. } => lease,
        state => panic!("{state:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_lease_is_never_taken_over_by_another_clock() {
    for ahead in [-HOUR, 0, HOUR] {
        let (_folder, path) = file();
        let (holder, other) = (SqliteStore::open(&path).await.unwrap(), open_by_other_clock(&path, ahead).await);
        let (rerun, reject) = (record_key("rerun"), record_key("reject"));
        let (first, at_most_once) = (brief(), ClaimRequest { after_crash: AfterCrash::Reject, ..brief() });
        holder.claim(&rerun, first).await.unwrap();
        holder.claim(&reject, at_most_once).await.unwrap();

        let begun = Instant::now();
        while begun.elapsed() < 3 * LEASE {
            for (key, request) in [(&rerun, first), (&reject, at_most_once)] {
                assert_eq!(holder.renew(key, request.token, LEASE).await.unwrap(), Held::Yes);
                let duplicate = other.claim(key, ClaimRequest { token: Token::unique(), ..request }).await.unwrap();
                assert!(matches!(duplicate, Claim::InFlight { .. }), "{ahead}: {duplicate:?}");
                assert!(lease_left(&other, key).await.is_some());
            }
            assert!(other.unknown_outcomes().await.unwrap().is_empty());
            assert_eq!(other.delete_expired().await.unwrap(), 0);
        }
        // The ttl is two hours: each clock decides about the expiry, and a clock that is ahead is an hour early.
        assert_eq!(holder.complete(&rerun, first.token, record(Vec::new()), 2 * TTL).await.unwrap(), Held::Yes);
        assert_eq!(other.claim(&rerun, claim_request()).await.unwrap(), Claim::Completed(record(Vec::new())));
        assert_eq!(holder.release(&reject, at_most_once.token).await.unwrap(), Held::Yes);
    }
}

/// The renewals in the lost file no longer count. Another clock has seen the second renewal there, and must not take
/// the second renewal of the new file for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_after_a_lost_file_are_not_taken_for_those_before() {
    let (_folder, path) = file();
    let holder = SqliteStore::open(&path).await.unwrap();
    let mut builder = SqliteStore::builder(&path);
    builder.clock = Some(Clock::alone());
    let (other, lease) = (builder.open().await.unwrap(), Duration::from_secs(1));
    let (key, request) = (record_key("k"), ClaimRequest { lease, ..claim_request() });
    holder.claim(&key, request).await.unwrap();
    let renew = async || assert_eq!(holder.renew(&key, request.token, lease).await.unwrap(), Held::Yes);
    let retry = async || {
        let retry = ClaimRequest { token: Token::unique(), ..request };
        let answer = other.claim(&key, retry).await.unwrap();
        assert!(matches!(answer, Claim::InFlight { .. }), "{answer:?}");
    };
    renew().await;
    renew().await;
    retry().await;
    tokio::time::sleep(lease * 8 / 10).await;
    renew().await;
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}-leases{end}", path.display()));
    }
    tokio::time::sleep(lease * 7 / 10).await;
    renew().await;
    retry().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_not_renewed_is_taken_over_by_another_clock() {
    for ahead in [-HOUR, HOUR] {
        let (_folder, path) = file();
        let (holder, other) = (SqliteStore::open(&path).await.unwrap(), open_by_other_clock(&path, ahead).await);
        let (rerun, reject) = (record_key("rerun"), record_key("reject"));
        let (dead, at_most_once) = (brief(), ClaimRequest { after_crash: AfterCrash::Reject, ..brief() });
        holder.claim(&rerun, dead).await.unwrap();
        holder.claim(&reject, at_most_once).await.unwrap();
        let looked = Instant::now();
        let retry = ClaimRequest { ttl: TTL, ..brief() };
        while matches!(other.claim(&rerun, retry).await.unwrap(), Claim::InFlight { .. }) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(looked.elapsed() + Duration::from_millis(5) >= LEASE, "{ahead}: {:?}", looked.elapsed());
        assert_eq!(lease_left(&other, &rerun).await.map(|left| left > LEASE), Some(false));
        assert_eq!(holder.renew(&rerun, dead.token, LEASE).await.unwrap(), Held::No);

        // The lapse is recorded without a retry, for all clocks. An operator's program ends too early to detect it.
        let third = open_by_other_clock(&path, 0).await;
        while lease_left(&third, &reject).await.is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for store in [&holder, &other, &third] {
            assert_eq!(store.unknown_outcomes().await.unwrap().values().sum::<u64>(), 1);
        }
        assert_eq!(other.delete_expired().await.unwrap(), 0, "it never expires");
        assert_eq!(holder.renew(&reject, at_most_once.token, LEASE).await.unwrap(), Held::Yes, "it is late, but alive");
        assert!(third.unknown_outcomes().await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_claims_of_another_clock_are_deleted() {
    let (_folder, path) = file();
    let (holder, other) = (SqliteStore::open(&path).await.unwrap(), open_by_other_clock(&path, HOUR).await);
    let (renewed, not_renewed) = (brief(), brief());
    holder.claim(&record_key("renewed"), renewed).await.unwrap();
    holder.claim(&record_key("not renewed"), not_renewed).await.unwrap();
    assert_eq!(holder.renew(&record_key("renewed"), renewed.token, LEASE).await.unwrap(), Held::Yes);
    drop(holder);
    while !other.list(None, 10).await.unwrap().entries.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(feature = "testing")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_of_its_own_keeps_the_contract() {
    let (_folder, path) = file();
    crate::testing::conformance::all(open_by_other_clock(&path, HOUR).await).await;
}
