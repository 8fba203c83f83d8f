//! The values and calls that the rules share.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::time::{Instant, sleep};

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::record::{Record, RecordedBody};
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::contract::{Store, StoreAdmin};
use crate::store::entry::Entry;

/// A time that is longer than any rule takes.
pub(super) const LONG: Duration = Duration::from_secs(10 * 60);

/// The time that a rule waits for an expected change.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The time by which a lease may expire too early, for clocks in whole milliseconds.
pub(super) const ROUNDING: Duration = Duration::from_millis(5);

pub(super) fn unique_key(name: &str) -> RecordKey {
    RecordKey::new("conformance", Some(name), &format!("{:x}", Token::unique().as_u128()))
}

pub(super) fn fingerprint(seed: u8) -> Fingerprint {
    Fingerprint::from_bytes([seed; 32])
}

pub(super) fn request() -> ClaimRequest {
    // The ttl is twice the lease, which is the least that the engine asks for.
    ClaimRequest::new(Token::unique(), fingerprint(1)).with_lease(LONG / 2).with_ttl(LONG)
}

pub(super) fn record() -> Record {
    let header = |name, value: &[u8]| {
        (HeaderName::from_static(name), HeaderValue::from_bytes(value).expect("the bytes are allowed in a header"))
    };
    let sensitive = |(name, mut value): (HeaderName, HeaderValue)| {
        value.set_sensitive(true);
        (name, value)
    };
    let headers = vec![
        header("content-type", b"text/plain"),
        header("x-many", b"second"),
        header("x-many", b"first"),
        header("x-many", b""),
        header("x-latin", b"caf\xe9"),
        header("x-bytes", b"\xff\xfe\x80\t|\"{}"),
        sensitive(header("x-account", b"4711")),
        sensitive(header("x-account", b"\xff")),
    ];
    let body = RecordedBody::Whole(Bytes::from_static(b"paid"));
    Record::new(
        StatusCode::CREATED,
        headers,
        body,
        fingerprint(1),
        UNIX_EPOCH + Duration::from_millis(1_795_000_000_123),
    )
}

pub(super) fn summary(record: &Record) -> (StatusCode, Option<usize>, SystemTime, Fingerprint) {
    (record.status, record.body_bytes().map(Bytes::len), record.recorded_at, record.fingerprint)
}

pub(super) async fn claim<S: StoreAdmin>(store: &Arc<S>, key: &RecordKey, request: ClaimRequest) -> Claim {
    store.claim(key, request).await.expect("the store claims")
}

pub(super) async fn renew<S: StoreAdmin>(store: &Arc<S>, key: &RecordKey, token: Token, lease: Duration) -> Held {
    store.renew(key, token, lease).await.expect("the store renews")
}

pub(super) async fn complete<S: StoreAdmin>(
    store: &Arc<S>,
    key: &RecordKey,
    token: Token,
    record: &Record,
    ttl: Duration,
) -> Held {
    store.complete(key, token, record.clone(), ttl).await.expect("the store completes")
}

pub(super) async fn release<S: StoreAdmin>(store: &Arc<S>, key: &RecordKey, token: Token) -> Held {
    store.release(key, token).await.expect("the store releases")
}

pub(super) async fn get<S: StoreAdmin>(store: &Arc<S>, key: &RecordKey) -> Option<Entry> {
    store.get(key).await.expect("the store answers")
}

pub(super) async fn purge<S: StoreAdmin>(store: &Arc<S>, key: &RecordKey) -> bool {
    store.purge(key).await.expect("the store purges")
}

pub(super) async fn lapse<S: StoreAdmin>(store: &Arc<S>, key: &RecordKey, token: Token) {
    assert_eq!(renew(store, key, token, Duration::ZERO).await, Held::Yes);
}

/// Repeats the call until its answer is the expected one.
pub(super) async fn until<T: std::fmt::Debug>(mut ask: impl AsyncFnMut() -> T, awaited: impl Fn(&T) -> bool) -> T {
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
