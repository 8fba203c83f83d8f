//! A sealed record is bound to its store, deployment and expiry. Neither `Debug` nor freed memory shows the content of
//! records and keys.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::routing::post;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use idempotent_runtime::operate::{EntryView, Keys, Settlement};
use idempotent_runtime::store::{
    Claim, ClaimRequest, Cursor, Entry, EntryState, Held, MemoryStore, Page, Renewal, Resolution, Store as _,
    StoreAdmin, StoreError, Token,
};
use idempotent_runtime::{
    Fingerprint, Idempotency, IdempotencyKey, MalformedSealingKey, Record, RecordKey, RecordedBody, Registry,
    RegistryBuilder, SealingKey, SealingKeys, idempotent,
};
use idempotent_tests::{Answer, Logs, Runs, Server, Wrapped, Wrapper, eventually, sealing_key};

#[idempotent(scope = "bound-charges")]
async fn charge(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}", runs.run().await))
}

#[idempotent(scope = "bound-transfers", store = "payments")]
async fn transfer(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}", runs.run().await))
}

#[idempotent(scope = "short-lived", ttl = "1s", lease = "1s")]
async fn short_lived(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}", runs.run().await))
}

/// Fails after its step, so that a retry uses the recorded result of the step.
#[idempotent(scope = "bound-steps")]
async fn order(State(runs): State<Runs>, idempotency: Idempotency) -> Result<StatusCode, Response<axum::body::Body>> {
    idempotency.step("reserve", || async { Ok::<_, Response<axum::body::Body>>(runs.run().await) }).await?;
    Ok(StatusCode::BAD_GATEWAY)
}

/// A body that begins as sealed content of this library does.
const BEGINNING: &[u8] = b"\xffIDSEAL\x02 and more";

#[idempotent(scope = "like-sealed")]
async fn like_sealed() -> (StatusCode, [(&'static str, &'static str); 1], &'static [u8]) {
    (StatusCode::CREATED, [("idempotency-seal", "AAAA")], BEGINNING)
}

async fn serve(registry: RegistryBuilder, runs: &Runs) -> Server {
    let app = Router::new()
        .route("/charges", post(charge))
        .route("/transfers", post(transfer))
        .route("/short-lived", post(short_lived))
        .route("/like-sealed", post(like_sealed))
        .route("/orders", post(order));
    Server::start(app.with_state(runs.clone()).layer(registry.build().layer())).await
}

async fn sends(server: &Server, path: &str) -> Answer {
    server.post_with_key(path, "k").await
}

fn keys(deployment: &str) -> SealingKeys {
    SealingKeys::from([sealing_key(1), sealing_key(2)]).deployment(deployment)
}

#[tokio::test]
async fn record_of_another_deployment_is_rejected() {
    let (runs, store, logs) = (Runs::free(), MemoryStore::new(), Logs::collect());
    let staging = serve(Registry::builder(store.clone()).seal_with(keys("staging")), &runs).await;
    sends(&staging, "/charges").await;
    assert!(sends(&staging, "/charges").await.is_replay());
    for other in [keys("production"), sealing_key(1).into()] {
        let other = serve(Registry::builder(store.clone()).seal_with(other), &runs).await;
        assert_eq!(sends(&other, "/charges").await.rejection(), "store_unavailable");
        let error = logs.of_level("ERROR").pop().expect("it is logged");
        assert!(error.contains("is that of another key, store or deployment"), "{error}");
    }
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn response_that_looks_sealed_is_replayed() {
    for seals in [false, true] {
        let registry = Registry::builder(MemoryStore::new());
        let registry = if seals { registry.seal_with(sealing_key(1)) } else { registry };
        let server = serve(registry, &Runs::free()).await;
        for is_replay in [false, true] {
            let answer = sends(&server, "/like-sealed").await;
            assert_eq!((answer.status, answer.is_replay()), (StatusCode::CREATED, is_replay), "{answer:?}");
            assert_eq!(answer.body, BEGINNING);
            assert_eq!(answer.headers.contains_key("idempotency-seal"), !is_replay);
        }
    }
}

#[tokio::test]
async fn record_moved_to_another_store_is_rejected() {
    let (runs, moved) = (Runs::free(), MemoryStore::new());
    let registry = |default: MemoryStore, payments: MemoryStore| {
        Registry::builder(default).store("payments", payments).seal_with(sealing_key(1))
    };
    let server = serve(registry(MemoryStore::new(), moved.clone()), &runs).await;
    assert_eq!(sends(&server, "/transfers").await.text(), "run 1");
    assert!(sends(&server, "/transfers").await.is_replay());
    let layer = idempotent_runtime::Policy::builder("bound-transfers").build().expect("a policy");
    let registry = registry(moved, MemoryStore::new()).build();
    let layer = idempotent_runtime::IdempotencyLayer::new(layer);
    let app = Router::new().route("/transfers", post(async || "it ran").layer(layer)).layer(registry.layer());
    let rejected = sends(&Server::start(app).await, "/transfers").await;
    assert_eq!(rejected.rejection(), "store_unavailable", "its default store has the record of the other one");
}

/// A store that keeps records for a day, whatever their ttl is.
#[derive(Clone, Default)]
struct KeepsAll(MemoryStore);

impl Wrapper for KeepsAll {
    fn inner(&self) -> &impl StoreAdmin {
        &self.0
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, _: Duration) -> Result<Held, StoreError> {
        self.0.complete(key, token, record, Duration::from_hours(24)).await
    }
}

#[tokio::test]
async fn record_kept_beyond_its_expiry_is_rejected() {
    let runs = Runs::free();
    let server = serve(Registry::builder(Wrapped(KeepsAll::default())).seal_with(sealing_key(1)), &runs).await;
    sends(&server, "/short-lived").await;
    assert!(sends(&server, "/short-lived").await.is_replay());
    let later = eventually(async || sends(&server, "/short-lived").await, |answer| !answer.is_replay()).await;
    assert_eq!(later.rejection(), "store_unavailable");
    assert_eq!(runs.started(), 1);
}

/// A store in which another writer has changed the result of a step.
#[derive(Clone)]
struct ChangesSteps(MemoryStore, RecordedBody);

impl Wrapper for ChangesSteps {
    fn inner(&self) -> &impl StoreAdmin {
        &self.0
    }

    async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        let claim = self.0.claim(key, request).await?;
        Ok(match claim {
            Claim::Completed(mut record) if key.step_of().is_some() => {
                record.body = self.1.clone();
                Claim::Completed(record)
            }
            claim => claim,
        })
    }
}

#[tokio::test]
async fn changed_result_of_a_step_is_rejected_and_never_run_again() {
    for planted in [RecordedBody::Whole("17".into()), RecordedBody::NotRecorded, RecordedBody::Sealed("17".into())] {
        let runs = Runs::free();
        let store = Wrapped(ChangesSteps(MemoryStore::new(), planted));
        let server = serve(Registry::builder(store).seal_with(sealing_key(1)), &runs).await;
        assert_eq!(sends(&server, "/orders").await.status, StatusCode::BAD_GATEWAY);
        assert_eq!(sends(&server, "/orders").await.rejection(), "store_unavailable");
        assert_eq!(runs.started(), 1);
    }
}

/// The record of the resolution is made without the registry, as the program `idempotent` does.
#[tokio::test]
async fn resolution_is_sealed_for_its_store_and_deployment() {
    for (store_name, deployment, is_replayed) in
        [("payments", "production", true), ("default", "production", false), ("payments", "staging", false)]
    {
        let (runs, store) = (Runs::free(), MemoryStore::new());
        let registry = Registry::builder(MemoryStore::new()).store("payments", store.clone());
        let server = serve(registry.seal_with(keys("production")), &runs).await;
        sends(&server, "/transfers").await;
        let key = RecordKey::new("bound-transfers", None, "k");
        let Some(Entry { fingerprint, .. }) = store.get(&key).await.expect("the store answers") else {
            panic!("a record")
        };
        assert!(store.purge(&key).await.expect("the store answers"));
        let claim = ClaimRequest::new(Token::unique(), fingerprint).with_lease(Duration::ZERO);
        let _ = store.claim(&key, claim).await.expect("the store answers");
        let entry = store.get(&key).await.expect("the store answers").expect("a claim");
        let receipt = Response::new("by an operator");
        let settlement = Settlement::executed(receipt, "ch_17").in_store(store_name).seal_with(keys(deployment));
        let resolution = settlement.resolution(&entry).expect("it is sound");
        let _ = store.resolve(&key, claim.token, resolution).await.expect("the store answers");
        let retry = sends(&server, "/transfers").await;
        let text = if is_replayed { retry.text().to_owned() } else { retry.rejection() };
        assert_eq!(text, if is_replayed { "by an operator" } else { "store_unavailable" });
        assert_eq!(runs.started(), 1);
    }
}

#[test]
fn key_that_repeats_one_byte_is_rejected() {
    for byte in [0, 1, 0xff] {
        assert_eq!(SealingKey::from_bytes([byte; 32]).err(), Some(MalformedSealingKey::NotRandom));
        let text = BASE64_STANDARD.encode([byte; 32]);
        assert_eq!(text.parse::<SealingKey>().err(), Some(MalformedSealingKey::NotRandom));
    }
}

/// A program that returns the error from `main` prints it with `Debug`.
#[test]
fn debug_of_a_malformed_sealing_key_is_its_message() {
    let malformed = "secret".parse::<SealingKey>().expect_err("it has other bytes");
    assert_eq!(format!("{malformed:?}"), malformed.to_string());
}

#[test]
fn debug_shows_no_content() {
    const SECRET: &str = "planted-5b1f";
    let key = RecordKey::new("charges", Some(SECRET), SECRET);
    let fingerprint = Fingerprint::from_bytes([7; 32]);
    let value = HeaderValue::from_static(SECRET);
    let headers = vec![(header::LOCATION, value.clone())];
    let record = |body| Record::new(StatusCode::CREATED, headers.clone(), body, fingerprint, SystemTime::now());
    let whole = record(RecordedBody::Whole(SECRET.into()));
    let claim = ClaimRequest::new(Token::unique(), fingerprint);
    let claimed = EntryState::Claimed { attempt: 1, lease: None, token: claim.token };
    let entry = Entry::new(key.clone(), fingerprint, claimed, None);
    let view = EntryView::new(entry.clone(), None);
    let settlement =
        Settlement::executed(Response::builder().header("location", value).body(SECRET).expect("sound"), SECRET);
    let shown = [
        format!("{key:?} {:?} {:?}", key.digested(), key.step(SECRET)),
        format!("{:?}", SECRET.parse::<IdempotencyKey>().expect("a key")),
        format!("{whole:?} {:?}", record(RecordedBody::Sealed(SECRET.into()))),
        format!("{:?} {:?}", Claim::Completed(whole.clone()), Resolution::executed(whole, Duration::from_secs(1))),
        format!("{entry:?} {:?}", Page::new(vec![entry.clone()], Some(Cursor::new(SECRET)))),
        format!("{view:?} {:?} {:?}", view.report(Keys::Masked), view.report(Keys::Revealed)),
        format!("{claim:?} {:?}", Renewal::new(key, claim.token, Duration::ZERO)),
        format!("{settlement:?} {:?}", settlement.resolution(&entry)),
    ];
    for shown in shown {
        assert!(!shown.contains(SECRET) && !shown.contains(&format!("{:?}", SECRET.as_bytes())), "{shown}");
    }
    let keys = keys("production");
    assert!(format!("{keys:?}").contains("SealingKey(..)"));
}

/// The memory of this process. It is opened before the key is dropped, because an allocation in between could overwrite
/// what was freed.
struct Memory {
    maps: String,
    content: File,
}

impl Memory {
    fn open() -> Self {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux says what is where");
        Self { maps, content: File::open("/proc/self/mem").expect("a process reads its own memory") }
    }

    /// Returns in how many places outside of the stacks the memory has these bytes, which are given inverted.
    fn copies_of(&self, inverted: &[u8]) -> usize {
        let here = std::ptr::from_ref(&inverted).addr() as u64;
        let mut copies = 0;
        for line in self.maps.lines().filter(|line| line.contains(" rw-p ") && !line.ends_with("[stack]")) {
            let (start, end) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).expect("a range");
            let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("an address"));
            let mut part = vec![0; usize::try_from(end - start).expect("it is in memory")];
            if (start..end).contains(&here) || self.content.read_exact_at(&mut part, start).is_err() {
                continue;
            }
            for byte in &mut part {
                *byte = !*byte;
            }
            copies += memchr::memmem::find_iter(&part, inverted).count();
        }
        copies
    }
}

/// Returns a key in base64, and the second half of its bytes inverted, so that the test itself keeps no copy of them
/// that the search would find.
fn any_key() -> (String, Vec<u8>) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = std::iter::repeat_with(|| char::from(DIGITS[fastrand::usize(..64)]));
    let text = digits.take(42).chain(['A', '=']).collect::<String>();
    let mut bytes = BASE64_STANDARD.decode(&text).expect("it is base64");
    for byte in &mut bytes {
        *byte = !*byte;
    }
    bytes.drain(..16);
    (text, bytes)
}

#[test]
fn dropped_key_leaves_no_secret_in_memory() {
    if !idempotent_tests::alone(dropped_key_leaves_no_secret_in_memory) {
        return;
    }
    let (text, inverted) = any_key();
    let known: Vec<u8> = inverted.iter().map(|byte| !byte).collect();
    assert_eq!(Memory::open().copies_of(&inverted), 1, "a search that misses {} bytes proves nothing", known.len());
    drop(text);
    let (text, inverted) = any_key();
    let memory = Memory::open();
    drop(text.parse::<SealingKey>().expect("a key"));
    assert_eq!(memory.copies_of(&inverted), 0);
}
