//! The size limit of the memory store, and how it deletes expired entries.

use std::future::pending;
use std::sync::mpsc;
use std::time::Duration;

use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, StatusCode};
use idempotent_runtime::store::{
    AfterCrash, Claim, ClaimRequest, Held, MemoryStore, Owner, Store, StoreAdmin, StoreError, Token,
};
use idempotent_runtime::{Fingerprint, Record, RecordKey, RecordedBody};
use idempotent_tests::{PATIENCE, eventually};

const TTL: Duration = Duration::from_hours(1);

fn key(number: usize) -> RecordKey {
    RecordKey::new("memory", None, &number.to_string())
}

fn request() -> ClaimRequest {
    ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([0; 32]))
        .with_lease(TTL)
        .with_ttl(TTL)
        .with_after_crash(AfterCrash::Rerun)
}

fn record(bytes: usize) -> Record {
    Record::new(
        StatusCode::OK,
        Vec::new(),
        RecordedBody::Whole(vec![0; bytes].into()),
        Fingerprint::from_bytes([0; 32]),
        std::time::UNIX_EPOCH,
    )
}

async fn keep(store: &MemoryStore, number: usize, bytes: usize, ttl: Duration) {
    let request = request();
    assert_eq!(store.claim(&key(number), request).await.expect("there is room"), Claim::Acquired { attempt: 1 });
    assert_eq!(store.complete(&key(number), request.token, record(bytes), ttl).await.expect("it is kept"), Held::Yes);
}

#[tokio::test(start_paused = true)]
async fn unknown_outcomes_stay_and_stay_counted_in_the_bound() {
    let store = MemoryStore::builder().max_bytes(1_000).build();
    let reject = || request().with_after_crash(AfterCrash::Reject);
    let mut granted = 0;
    while store.claim(&key(granted), reject()).await.is_ok() {
        granted += 1;
    }
    let used = store.used_bytes();
    // Longer than the coarse clock of the queue of expiries can represent.
    for _ in 0..10 {
        tokio::time::advance(Duration::from_hours(24 * 365)).await;
        assert_eq!(store.delete_expired().await.expect("memory answers"), 0);
        assert!(matches!(store.claim(&key(1_000), reject()).await, Err(StoreError::Full)));
    }
    assert_eq!((store.len(), store.used_bytes()), (granted, used));
    let fingerprint = reject().fingerprint;
    assert_eq!(store.claim(&key(0), reject()).await.expect("memory answers"), Claim::Lapsed { fingerprint });
    assert!(store.purge(&key(0)).await.expect("memory answers"));
    assert_eq!(store.claim(&key(1_000), reject()).await.expect("there is room"), Claim::Acquired { attempt: 1 });
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_is_freed_without_anyone_asking() {
    let store = MemoryStore::new();
    for number in 0..2_000 {
        keep(&store, number, 100, Duration::from_secs(10)).await;
    }
    keep(&store, 2_000, 100, TTL).await;
    assert_eq!(store.len(), 2_001);
    assert!(store.used_bytes() > 2_001 * 100);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(store.len(), 1, "no call has asked for any of them");
    assert!(store.used_bytes() < 1_000);
    tokio::time::sleep(TTL).await;
    assert_eq!((store.len(), store.used_bytes()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_earlier_expiry_wakes_the_deletion_earlier() {
    let store = MemoryStore::new();
    keep(&store, 0, 0, TTL).await;
    tokio::task::yield_now().await;
    keep(&store, 1, 0, Duration::from_secs(1)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(store.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn releases_and_purges_leave_nothing_behind() {
    let store = MemoryStore::new();
    for _ in 0..100 {
        let request = request();
        let _ = store.claim(&key(0), request).await;
        assert_eq!(store.release(&key(0), request.token).await.expect("it answers"), Held::Yes);
        keep(&store, 1, 1_000, TTL).await;
        assert!(store.purge(&key(1)).await.expect("it answers"));
    }
    assert_eq!((store.len(), store.used_bytes()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn one_deletion_frees_a_bounded_batch() {
    let store = MemoryStore::new();
    for number in 0..10_000 {
        keep(&store, number, 0, Duration::from_secs(1)).await;
    }
    // Advancing runs no other task, so the task of the store has not run.
    tokio::time::advance(Duration::from_secs(2)).await;
    let mut left = store.len();
    let mut largest = 0;
    loop {
        let freed = store.delete_expired().await.expect("it deletes expired rows");
        if freed == 0 {
            break;
        }
        largest = largest.max(freed);
        left -= freed;
    }
    assert_eq!((store.len(), left), (0, 0));
    assert!(largest <= 64, "{largest} in one batch");
}

#[tokio::test(start_paused = true)]
async fn a_full_store_rejects_new_claims_and_nothing_else() {
    let store = MemoryStore::builder().max_bytes(10_000).build();
    let running = request();
    let _ = store.claim(&key(0), running).await;
    let mut kept = 0;
    loop {
        let request = request();
        match store.claim(&key(kept + 1), request).await {
            Ok(_) => {
                assert_eq!(
                    store.complete(&key(kept + 1), request.token, record(500), TTL).await.expect("kept"),
                    Held::Yes
                );
                kept += 1;
            }
            Err(error) => {
                assert!(matches!(error, StoreError::Full), "{error}");
                break;
            }
        }
    }
    assert!((5..40).contains(&kept), "{kept} records of 500 bytes");
    // The claim that was granted takes its record, however large the record is.
    assert_eq!(store.complete(&key(0), running.token, record(50_000), TTL).await.expect("kept"), Held::Yes);
    for number in 0..=kept {
        assert!(matches!(store.claim(&key(number), request()).await, Ok(Claim::Completed(_))), "{number} was evicted");
    }
    assert!(matches!(store.claim(&key(kept + 1), request()).await, Err(StoreError::Full)));
}

#[tokio::test(start_paused = true)]
async fn share_of_a_caller_is_free_again_when_all_has_ended() {
    let store = MemoryStore::builder().max_bytes(10_000).build();
    let of = |caller: &str, number: usize| RecordKey::new("memory", Some(caller), &number.to_string());
    let second = Duration::from_secs(1);
    for _ in 0..3 {
        let mut tokens = Vec::new();
        let rejected = loop {
            let request = request().with_lease(second).with_ttl(second).with_owner(Owner::from_u128(1));
            match store.claim(&of("mallory", tokens.len()), request).await {
                Ok(_) => tokens.push(request.token),
                Err(error) => break error,
            }
        };
        assert!(matches!(rejected, StoreError::OverQuota), "{rejected}");
        assert!(store.used_bytes() <= 5_000, "half of the store");
        assert_eq!(
            store.claim(&of("alice", 0), request().with_owner(Owner::from_u128(2))).await.expect("there is room"),
            Claim::Acquired { attempt: 1 }
        );
        // A third is recorded, a third is released, and a third expires.
        for (number, &token) in tokens.iter().enumerate() {
            let key = of("mallory", number);
            let _ = match number % 3 {
                0 => store.complete(&key, token, record(1_000), second).await,
                1 => store.release(&key, token).await,
                _ => continue,
            };
        }
        assert!(store.purge(&of("alice", 0)).await.expect("memory answers"));
        tokio::time::sleep(2 * second).await;
        assert_eq!((store.len(), store.used_bytes()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_store_makes_room_from_what_has_expired() {
    let store = MemoryStore::builder().max_bytes(3_000).build();
    let mut number = 0;
    while store
        .claim(&key(number), request().with_lease(Duration::from_secs(1)).with_ttl(Duration::from_secs(1)))
        .await
        .is_ok()
    {
        number += 1;
    }
    // No other task runs in between.
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(store.claim(&key(1_000_000), request()).await.is_ok());
}

/// Rejected claims of a caller beyond its share start deletions at their own rate, so that a full store still makes
/// room for others.
#[tokio::test(start_paused = true)]
async fn caller_beyond_its_share_keeps_no_room_from_others() {
    let store = MemoryStore::builder().max_bytes(3_000).max_bytes_per_caller(1_000).build();
    let claim = async |owner: u128, key: usize, ttl: u64| {
        let ttl = Duration::from_secs(ttl);
        let request = request().with_lease(ttl / 2).with_ttl(ttl).with_owner(Owner::from_u128(owner));
        store.claim(&RecordKey::new("memory", Some(&owner.to_string()), &key.to_string()), request).await
    };
    let mut number = 0;
    while claim(1, number, 60).await.is_ok() {
        number += 1;
    }
    let mut others = 0;
    while !matches!(claim(2 + others / 2, others as usize, 1).await, Err(StoreError::Full)) {
        others += 1;
    }
    // No other task runs in between.
    tokio::time::advance(Duration::from_secs(2)).await;
    for _ in 0..3 {
        assert!(matches!(claim(1, number, 60).await, Err(StoreError::OverQuota)));
    }
    assert!(claim(1_000, 0, 60).await.is_ok());
}

#[test]
fn it_forgets_on_in_another_runtime_when_the_first_one_is_gone() {
    let store = MemoryStore::new();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime().block_on(keep(&store, 0, 0, TTL));
    runtime().block_on(async {
        keep(&store, 1, 0, Duration::from_millis(50)).await;
        eventually(async || store.len(), |&left| left == 1).await;
    });
}

#[test]
fn what_is_kept_without_a_runtime_is_forgotten_in_one() {
    let store = MemoryStore::new();
    keep(&store, 0, 0, Duration::from_millis(50)).now_or_never().expect("it answers at once");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        keep(&store, 1, 0, TTL).await;
        eventually(async || store.len(), |&left| left == 1).await;
    });
}

/// A rejected claim makes no entry, and only a new entry would spawn the store's task again.
#[test]
fn it_gives_a_share_back_when_its_runtime_is_gone() {
    let store = MemoryStore::builder().max_bytes_per_caller(250).build();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let claim = async |key: &str| {
        let request = request().with_lease(Duration::from_millis(50)).with_ttl(Duration::from_millis(100));
        let request = request.with_owner(Owner::from_u128(1));
        store.claim(&RecordKey::new("memory", Some("alice"), key), request).await
    };
    runtime().block_on(async { claim("first").await.expect("there is room") });
    runtime().block_on(async {
        assert!(matches!(claim("second").await, Err(StoreError::OverQuota)));
        eventually(async || claim("second").await, Result::is_ok).await.expect("awaited");
    });
}

/// A value that claims a key when its runtime drops it.
struct ClaimsAtTheEnd(MemoryStore);

impl Drop for ClaimsAtTheEnd {
    fn drop(&mut self) {
        let claim = self.0.claim(&key(0), request()).now_or_never().expect("it answers at once");
        assert_eq!(claim.expect("there is room"), Claim::Acquired { attempt: 1 });
    }
}

/// The runtime drops the store's task, which deletes expired entries, as soon as it is spawned.
#[test]
fn a_claim_in_a_runtime_that_shuts_down_does_not_hang() {
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        let store = MemoryStore::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let claims = ClaimsAtTheEnd(store.clone());
        runtime.block_on(async {
            tokio::spawn(async move {
                pending::<()>().await;
                drop(claims);
            });
            tokio::task::yield_now().await;
        });
        drop(runtime);
        ended.send(store.len()).expect("the test waits");
    });
    assert_eq!(end.recv_timeout(PATIENCE), Ok(1));
}

#[tokio::test]
async fn its_task_ends_with_its_last_handle() {
    let store = MemoryStore::new();
    keep(&store, 0, 0, TTL).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert_eq!(tasks(), 1);
    drop(store.clone());
    tokio::task::yield_now().await;
    assert_eq!(tasks(), 1);
    drop(store);
    eventually(async || tasks(), |&alive| alive == 0).await;
}

#[tokio::test]
async fn texts_of_every_length_come_back() {
    let store = MemoryStore::new();
    for length in [0, 1, 126, 127, 128, 129, 4_095, 4_096, 16_383, 16_384, 2_097_152] {
        let request = request();
        let key = RecordKey::new("memory", Some(&"c".repeat(length.min(20_000))), &format!("{length}"));
        let value = HeaderValue::from_bytes(&vec![b'v'; length.min(60_000)]).expect("letters are a value");
        let headers =
            vec![(HeaderName::from_static("x-first"), value.clone()), (HeaderName::from_static("x-last"), value)];
        let mut record = record(length);
        record.headers = headers;
        assert_eq!(store.claim(&key, request).await.expect("there is room"), Claim::Acquired { attempt: 1 });
        let held = store.complete(&key, request.token, record.clone(), TTL).await.expect("it is kept");
        assert_eq!(held, Held::Yes);
        let claim = store.claim(&key, self::request()).await.expect("the store answers");
        assert_eq!(claim, Claim::Completed(record), "{length}");
        assert!(store.purge(&key).await.expect("the store answers"), "{length}");
        assert_eq!(store.used_bytes(), 0, "{length}");
    }
}
