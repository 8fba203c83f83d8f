//! What only shows from inside: a disk that is full, and a claim whose caller has gone.

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

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
use crate::store::error::StoreError;
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
    ClaimRequest {
        token: Token::unique(),
        fingerprint: Fingerprint::from_bytes([7; 32]),
        lease: TTL,
        ttl: TTL,
        after_crash: AfterCrash::Rerun,
    }
}

fn record(body: Vec<u8>) -> Record {
    Record {
        status: StatusCode::CREATED,
        headers: Vec::new(),
        body: RecordedBody::Whole(body.into()),
        fingerprint: Fingerprint::from_bytes([7; 32]),
        recorded_at: UNIX_EPOCH,
    }
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

/// The claim waits behind another process's lock until its caller gives up: no handler would ever complete or release it.
#[tokio::test]
async fn a_claim_whose_caller_has_gone_is_not_made() {
    let (_folder, path) = file();
    let store = SqliteStore::open(&path).await.unwrap();
    let mut lock = store.0.options.connect_options().connect().await.unwrap();
    lock.execute("BEGIN IMMEDIATE").await.unwrap();
    let claim = |name| ClaimWrite::new(record_key(name), claim_request(), None);
    let mut gone = store.0.writer.submit(claim("gone")).boxed();
    let mut waiting = store.0.writer.submit(claim("waiting")).boxed();
    assert!(poll!(&mut gone).is_pending() && poll!(&mut waiting).is_pending());

    drop(gone);
    lock.execute("COMMIT").await.unwrap();

    assert_eq!(waiting.await.unwrap(), Claim::Acquired { attempt: 1 });
    assert_eq!(store.get(&record_key("gone")).await.unwrap(), None);
}
