//! The SQLite store keeps its promises after a restart, with damaged rows and when it is full, and it deletes expired
//! rows by itself.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::time::Duration;

use idempotent_runtime::RecordedBody;
use idempotent_runtime::store::{AfterCrash, Claim, EntryState, Held, SqliteStore, Store as _, StoreAdmin, StoreError};
use idempotent_tests::eventually;
use idempotent_tests::sqlite::{SqliteFile, acquire, claim_request, record, record_key};

/// Longer than any test runs.
const NEVER: Duration = Duration::from_hours(24);

#[tokio::test]
async fn records_claims_and_attempts_survive_reopening() {
    let file = SqliteFile::new();
    let (done, running, oversize) = (record_key("done"), record_key("running"), record_key("oversize"));
    let second_attempt = claim_request();
    {
        let store = SqliteStore::open(file.path()).await.unwrap();
        let token = acquire(&store, &done).await;
        assert_eq!(store.complete(&done, token, record("paid"), NEVER).await.unwrap(), Held::Yes);
        let token = acquire(&store, &oversize).await;
        let mut not_recorded = record("");
        not_recorded.body = RecordedBody::NotRecorded;
        assert_eq!(store.complete(&oversize, token, not_recorded, NEVER).await.unwrap(), Held::Yes);
        let token = acquire(&store, &running).await;
        assert_eq!(store.renew(&running, token, Duration::ZERO).await.unwrap(), Held::Yes);
        assert_eq!(store.claim(&running, second_attempt).await.unwrap(), Claim::Acquired { attempt: 2 });
    }
    file.closed().await;

    let store = SqliteStore::open(file.path()).await.unwrap();
    assert_eq!(store.claim(&done, claim_request()).await.unwrap(), Claim::Completed(record("paid")));
    let Claim::Completed(replay) = store.claim(&oversize, claim_request()).await.unwrap() else { panic!("a record") };
    assert_eq!(replay.body, RecordedBody::NotRecorded);
    assert!(matches!(store.claim(&running, claim_request()).await.unwrap(), Claim::InFlight { .. }));
    assert_eq!(store.claim(&running, second_attempt).await.unwrap(), Claim::Acquired { attempt: 2 });
    assert_eq!(store.complete(&running, second_attempt.token, record("late"), NEVER).await.unwrap(), Held::Yes);
}

#[tokio::test]
async fn rows_can_be_read_by_a_person() {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.unwrap();
    let token = acquire(&store, &record_key("order 1")).await;
    assert_eq!(store.complete(&record_key("order 1"), token, record("paid"), NEVER).await.unwrap(), Held::Yes);

    let row: (String, String, String, i64, String, String) =
        sqlx::query_as("SELECT key, state, fingerprint, status, headers, CAST(body AS TEXT) FROM idempotency_records")
            .fetch_one(&mut file.connect().await)
            .await
            .unwrap();

    assert_eq!(row.0, record_key("order 1").as_str());
    assert_eq!((row.1.as_str(), row.2, row.3), ("completed", "07".repeat(32), 201));
    assert_eq!((row.4.as_str(), row.5.as_str()), (r#"[["x-line","one"],["x-line",{"base64":"/yB0d28="}]]"#, "paid"));
}

/// The new claim overwrites the row of the record. Nothing of the old response may be left in the row.
#[tokio::test]
async fn a_claim_takes_over_the_row_of_an_expired_record() {
    let file = SqliteFile::new();
    let store = SqliteStore::builder(file.path()).delete_expired_every(NEVER).open().await.unwrap();
    let key = record_key("k");
    let old = acquire(&store, &key).await;
    assert_eq!(store.complete(&key, old, record("old"), Duration::ZERO).await.unwrap(), Held::Yes);
    assert_eq!(store.complete(&key, old, record("old"), NEVER).await.unwrap(), Held::No, "its time is over");

    let new = acquire(&store, &key).await;

    let blank = "SELECT count(*) FROM idempotency_records WHERE id = 1 AND state = 'claimed'
                 AND coalesce(recorded_at, status, headers, body) IS NULL";
    assert_eq!(file.number(blank).await, 1);
    assert_eq!(store.complete(&key, old, record("old"), NEVER).await.unwrap(), Held::No);
    assert_eq!(store.release(&key, old).await.unwrap(), Held::No);
    assert_eq!(store.complete(&key, new, record("new"), NEVER).await.unwrap(), Held::Yes);
    assert_eq!(store.complete(&key, new, record("again"), NEVER).await.unwrap(), Held::Yes);
    assert_eq!(store.release(&key, new).await.unwrap(), Held::No, "a record is not released");
    assert_eq!(store.claim(&key, claim_request()).await.unwrap(), Claim::Completed(record("new")));
}

#[tokio::test]
async fn a_damaged_record_is_rejected_and_never_run_again() {
    for damage in [
        "status = NULL",
        "status = 99",
        "status = 70000",
        "headers = NULL",
        "headers = '[[\"x-secret\"'",
        "headers = '[[\"bad name\", \"x\"]]'",
        "headers = '[[\"x-line\", {\"base64\": \"?\"}]]'",
        "headers = CAST(x'5b5bff' AS TEXT)",
        "fingerprint = 'abc'",
        "state = 'finished'",
        "recorded_at = NULL",
    ] {
        let file = SqliteFile::new();
        let store = SqliteStore::open(file.path()).await.unwrap();
        let key = record_key("k-damaged");
        let token = acquire(&store, &key).await;
        assert_eq!(store.complete(&key, token, record("paid"), NEVER).await.unwrap(), Held::Yes);
        file.execute(&format!("UPDATE idempotency_records SET {damage}")).await;

        let answer = store.claim(&key, claim_request()).await;

        let Err(StoreError::Damaged(reason)) = answer else { panic!("{damage}: {answer:?}") };
        assert!(reason.contains("row 1 of idempotency_records"), "{damage}: {reason}");
        assert!(!reason.contains("k-damaged") && !reason.contains("secret"), "{damage}: {reason}");
    }
}

#[tokio::test]
async fn a_damaged_claim_is_rejected_and_never_run_again() {
    for damage in ["token = 'nobody'", "attempt = -1", "attempt = 4294967296", "fingerprint = ''", "lease_until = NULL"]
    {
        let file = SqliteFile::new();
        let store = SqliteStore::open(file.path()).await.unwrap();
        let key = record_key("k");
        acquire(&store, &key).await;
        file.execute(&format!("UPDATE idempotency_records SET {damage}")).await;

        let answer = store.claim(&key, claim_request()).await;

        assert!(matches!(answer, Err(StoreError::Damaged(_))), "{damage}: {answer:?}");
    }
}

#[tokio::test]
async fn operators_are_told_which_row_is_damaged() {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.unwrap();
    acquire(&store, &record_key("sound")).await;
    acquire(&store, &record_key("k")).await;
    file.execute("UPDATE idempotency_records SET key = 'no record key' WHERE id = 2").await;

    for limit in [1, 10] {
        let (mut entries, mut damaged, mut cursor) = (Vec::new(), Vec::new(), None);
        loop {
            let page = store.list(cursor, limit).await.unwrap();
            entries.extend(page.entries.into_iter().map(|entry| entry.key));
            damaged.extend(page.damaged);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(entries, [record_key("sound")], "in pages of {limit}");
        let [damaged] = &damaged[..] else { panic!("one row is damaged: {damaged:?}") };
        assert_eq!(damaged.key, None, "the key is what cannot be read");
        assert!(damaged.reason.contains("row 2"), "{}", damaged.reason);
    }
}

#[tokio::test]
async fn a_damaged_page_is_rejected_as_damage() {
    let file = SqliteFile::new();
    let key = record_key("k");
    let store = SqliteStore::open(file.path()).await.unwrap();
    let token = acquire(&store, &key).await;
    assert_eq!(store.complete(&key, token, record("paid"), NEVER).await.unwrap(), Held::Yes);
    drop(store);
    file.closed().await;
    let page = file.number("SELECT rootpage FROM sqlite_schema WHERE name = 'idempotency_records'").await;
    let page_size = file.number("PRAGMA page_size").await;
    file.closed().await;
    let mut bytes = fs::OpenOptions::new().write(true).open(file.path()).unwrap();
    bytes.seek(SeekFrom::Start(u64::try_from((page - 1) * page_size).unwrap())).unwrap();
    bytes.write_all(&[0xff; 512]).unwrap();
    drop(bytes);

    let store = SqliteStore::open(file.path()).await.unwrap();
    let answer = store.claim(&key, claim_request()).await;
    assert!(matches!(answer, Err(StoreError::Damaged(_))), "{answer:?}");
    let answer = store.claim(&record_key("other"), claim_request()).await;
    assert!(matches!(answer, Err(StoreError::Damaged(_))), "a new key: {answer:?}");
}

#[tokio::test]
async fn expired_rows_go_without_anyone_asking() {
    let file = SqliteFile::new();
    let store = SqliteStore::builder(file.path()).delete_expired_every(Duration::from_millis(5)).open().await.unwrap();
    acquire(&store, &record_key("alive")).await;
    let short = Duration::from_millis(1);
    for number in 0..3 {
        let key = record_key(&format!("claim {number}"));
        let request = claim_request().with_lease(short).with_ttl(short);
        assert_eq!(store.claim(&key, request).await.unwrap(), Claim::Acquired { attempt: 1 });
        let key = record_key(&format!("record {number}"));
        let token = acquire(&store, &key).await;
        assert_eq!(store.complete(&key, token, record("paid"), short).await.unwrap(), Held::Yes);
    }

    let rows = async || file.number("SELECT count(*) FROM idempotency_records").await;
    eventually(rows, |&count| count == 1).await;

    assert!(store.get(&record_key("alive")).await.unwrap().is_some());
}

#[tokio::test]
async fn deletion_of_expired_rows_takes_small_batches() {
    let file = SqliteFile::new();
    let store = SqliteStore::builder(file.path()).delete_expired_every(NEVER).open().await.unwrap();
    let expired =
        "INSERT INTO idempotency_records (key, state, fingerprint, token, attempt, claim_ttl, expires_at, body)";
    file.execute(&format!(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600)
         {expired} SELECT 'small' || i, 'completed', '', '', 1, 1, 1, x'' FROM n;
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3)
         {expired} SELECT 'large' || i, 'completed', '', '', 1, 1, 2, zeroblob(3000000) FROM n;"
    ))
    .await;

    assert_eq!(store.delete_expired().await.unwrap(), 512, "as many rows as a batch may have");
    assert_eq!(store.delete_expired().await.unwrap(), 600 - 512 + 2, "no more bodies than a batch may have");
    assert_eq!(store.delete_expired().await.unwrap(), 1);
    assert_eq!(store.delete_expired().await.unwrap(), 0);
}

#[tokio::test]
async fn full_store_takes_only_records_of_granted_claims() {
    let file = SqliteFile::new();
    let store = SqliteStore::builder(file.path()).max_bytes(200_000).delete_expired_every(NEVER).open().await.unwrap();
    let (first, running) = (record_key("first"), record_key("running"));
    let token = acquire(&store, &first).await;
    let running_token = acquire(&store, &running).await;
    let short = Duration::from_millis(200);
    assert_eq!(store.complete(&first, token, record(vec![1; 300_000]), short).await.unwrap(), Held::Yes);

    let rejected = store.claim(&record_key("new"), claim_request()).await;
    assert!(matches!(rejected, Err(StoreError::Full)), "{rejected:?}");
    assert_eq!(store.renew(&running, running_token, NEVER).await.unwrap(), Held::Yes);
    let large = record(vec![2; 300_000]);
    assert_eq!(store.complete(&running, running_token, large.clone(), NEVER).await.unwrap(), Held::Yes);
    assert_eq!(store.claim(&running, claim_request()).await.unwrap(), Claim::Completed(large));

    assert!(store.purge(&running).await.unwrap());
    let claim = async || store.claim(&record_key("new"), claim_request()).await;
    let claim = eventually(claim, Result::is_ok).await.expect("awaited");
    assert_eq!(claim, Claim::Acquired { attempt: 1 });
}

#[tokio::test]
async fn the_last_handle_closes_the_file() {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.unwrap();
    let clone = store.clone();
    acquire(&store, &record_key("k")).await;
    assert!(file.log().exists());
    drop(store);
    assert!(clone.get(&record_key("k")).await.unwrap().is_some(), "the clone goes on");

    drop(clone);

    file.closed().await;
}

#[test]
fn a_store_outlives_the_runtime_that_opened_it() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let file = SqliteFile::new();
    let key = record_key("k");
    let (store, token) = runtime().block_on(async {
        let store = SqliteStore::open(file.path()).await.unwrap();
        let token = acquire(&store, &key).await;
        (store, token)
    });

    runtime().block_on(async {
        assert_eq!(store.complete(&key, token, record("paid"), NEVER).await.unwrap(), Held::Yes);
        assert_eq!(store.claim(&key, claim_request()).await.unwrap(), Claim::Completed(record("paid")));
    });
}

#[tokio::test]
async fn entries_are_listed_page_by_page() {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.unwrap();
    for number in 0..5 {
        acquire(&store, &record_key(&format!("k{number}"))).await;
    }
    let lapsed = claim_request().with_lease(Duration::ZERO).with_after_crash(AfterCrash::Reject);
    store.claim(&record_key("lapsed"), lapsed).await.unwrap();

    let (mut keys, mut cursor) = (Vec::new(), None);
    loop {
        let page = store.list(cursor, 2).await.unwrap();
        assert_eq!(page.entries.len(), 2);
        keys.extend(page.entries.into_iter().map(|entry| entry.key));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }

    let mut expected: Vec<_> = ["k0", "k1", "k2", "k3", "k4", "lapsed"].map(record_key).to_vec();
    expected.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    assert_eq!(keys, expected);
    let entry = store.get(&record_key("lapsed")).await.unwrap().unwrap();
    assert!(matches!(entry.state, EntryState::Claimed { attempt: 1, lease: None, .. }), "{entry:?}");
}
