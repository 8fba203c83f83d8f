//! Operations of many callers go out together, and each gets its own answer.

mod failures;
mod lost;
mod runtimes;

use std::time::Duration;

use futures_util::future::join_all;
use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, Held, RedisStore, Store, StoreError, Token};
use idempotent_runtime::{Fingerprint, RecordKey};
use idempotent_tests::PATIENCE;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::stores::{claim_request, record};
use tokio::task::JoinHandle;

/// More than one batch takes.
const CALLERS: usize = 64;

fn key(name: &str, number: usize) -> RecordKey {
    RecordKey::new("batches", None, &format!("{name}{number}"))
}

/// The name of a [`key`] in the server.
fn name_of(name: &str, number: usize) -> String {
    format!("idempotency:{}", key(name, number).as_str())
}

fn requests() -> Vec<ClaimRequest> {
    (0..CALLERS).map(|_| claim_request()).collect()
}

/// Each in a task of its own, as requests are.
fn claim_all(store: &RedisStore, name: &str, requests: &[ClaimRequest]) -> Vec<JoinHandle<Result<Claim, StoreError>>> {
    let claim = |(number, request): (usize, &ClaimRequest)| {
        let (store, key, request) = (store.clone(), key(name, number), *request);
        tokio::spawn(async move { store.claim(&key, request).await })
    };
    requests.iter().enumerate().map(claim).collect()
}

fn body(number: usize, length: usize) -> Vec<u8> {
    let mut body = format!("paid {number}").into_bytes();
    body.resize(length, b' ');
    body
}

/// Completes the claims with bodies of this length.
fn complete_all(
    store: &RedisStore,
    name: &str,
    requests: &[ClaimRequest],
    length: usize,
) -> Vec<JoinHandle<Result<Held, StoreError>>> {
    let complete = |(number, request): (usize, &ClaimRequest)| {
        let (store, key, request) = (store.clone(), key(name, number), *request);
        let record = record(body(number, length));
        tokio::spawn(async move { store.complete(&key, request.token, record, request.ttl).await })
    };
    requests.iter().enumerate().map(complete).collect()
}

async fn answers<T>(calls: Vec<JoinHandle<T>>) -> Vec<T> {
    let answered = tokio::time::timeout(PATIENCE, join_all(calls)).await.expect("every caller is answered");
    answered.into_iter().map(|answer| answer.expect("the task runs")).collect()
}

fn is_first_attempt(claim: &Result<Claim, StoreError>) -> bool {
    matches!(claim, Ok(Claim::Acquired { attempt: 1 }))
}

async fn assert_claimed(store: &RedisStore, name: &str, requests: &[ClaimRequest]) {
    let claims = answers(claim_all(store, name, requests)).await;
    assert!(claims.iter().all(is_first_attempt), "{claims:?}");
}

/// Each key has its own record.
async fn assert_recorded(store: &RedisStore, name: &str, length: usize) {
    for (number, replay) in answers(claim_all(store, name, &requests())).await.into_iter().enumerate() {
        let Ok(Claim::Completed(found)) = replay else { panic!("{number}: {replay:?}") };
        assert!(found.body == record(body(number, length)).body, "record {number}");
    }
}

async fn connect(server: &RedisServer) -> RedisStore {
    RedisStore::connect(&server.url()).await.expect("the store opens")
}

/// How often a client or a script has called this command.
async fn calls(server: &RedisServer, command: &str) -> usize {
    let stats: String = server.command("INFO commandstats").await;
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.and_then(|line| line.split(',').next()?.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn many_completions_share_scripts_within_their_bytes() {
    let server = RedisServer::start(&[]).await;
    let store = connect(&server).await;
    // The first run sends the text of the script.
    for (name, length, scripts) in
        [("first", 100, 0..=20), ("small", 100, 2..=20), ("large", 40 << 10, 11..=40), ("larger", 60 << 10, 64..=64)]
    {
        let requests = requests();
        assert_claimed(&store, name, &requests).await;
        let before = calls(&server, "evalsha").await;
        let completed = answers(complete_all(&store, name, &requests, length)).await;
        assert!(completed.iter().all(|held| matches!(held, Ok(Held::Yes))), "{completed:?}");
        let took = calls(&server, "evalsha").await - before;
        assert!(scripts.contains(&took), "{name}: {took} scripts");
        assert_recorded(&store, name, length).await;
    }
}

/// Without a listening client, a batch publishes once. A process that waits hears about each of the keys.
#[tokio::test]
async fn batch_wakes_those_that_wait_for_any_of_its_keys() {
    let server = RedisServer::start(&[]).await;
    let (store, elsewhere) = (connect(&server).await, connect(&server).await);
    let unheard = requests();
    assert_claimed(&store, "unheard", &unheard).await;
    let completed = answers(complete_all(&store, "unheard", &unheard, 10)).await;
    assert!(completed.iter().all(|held| matches!(held, Ok(Held::Yes))), "{completed:?}");
    assert!(calls(&server, "publish").await < CALLERS, "no client listens");
    let requests = requests();
    assert_claimed(&store, "waited", &requests).await;
    let waiting: Vec<_> = (0..CALLERS)
        .map(|number| {
            let (store, key) = (elsewhere.clone(), key("waited", number));
            tokio::spawn(async move { store.changed(&key).await })
        })
        .collect();
    let subscribers = async || server.command::<Vec<String>>("PUBSUB CHANNELS idempotency:*").await.len();
    idempotent_tests::eventually(subscribers, |&subscribers| subscribers == 1).await;
    let completed = answers(complete_all(&store, "waited", &requests, 10)).await;
    assert!(completed.iter().all(|held| matches!(held, Ok(Held::Yes))), "{completed:?}");
    answers(waiting).await;
}

/// What a key can have when an operation comes.
const STATES: [&str; 8] = [
    "absent",
    "claimed",
    "claimed by this token",
    "claimed under reject by this token",
    "lapsed",
    "lapsed under another request",
    "record",
    "own record",
];

/// Brings a key into this state, and returns the next claim of it.
async fn prepare(store: &RedisStore, state: &str, key: &RecordKey) -> ClaimRequest {
    let (mut holder, next) = (claim_request(), claim_request());
    if state == "absent" {
        return next;
    }
    if state.contains("reject") {
        holder = holder.with_after_crash(AfterCrash::Reject);
    }
    assert!(is_first_attempt(&store.claim(key, holder).await));
    if state.starts_with("lapsed") {
        assert_eq!(store.renew(key, holder.token, Duration::ZERO).await.expect("it renews"), Held::Yes);
    }
    if state.ends_with("record") {
        let completed = store.complete(key, holder.token, record("paid before"), holder.ttl).await;
        assert_eq!(completed.expect("it records"), Held::Yes);
    }
    match state {
        "lapsed under another request" => next.with_fingerprint(Fingerprint::from_bytes([2; 32])),
        "claimed" | "lapsed" | "record" => next,
        _ => holder,
    }
}

/// An operation in a batch is decided as one in a call of its own.
#[tokio::test]
async fn batched_operations_are_decided_as_single_ones() {
    let server = RedisServer::start(&[]).await;
    let store = connect(&server).await;
    let operate = async |is_claim: bool, key: &RecordKey, next: ClaimRequest| {
        if is_claim {
            format!("{:?}", store.claim(key, next).await)
        } else {
            format!("{:?}", store.complete(key, next.token, record("paid"), next.ttl).await)
        }
    };
    for is_claim in [true, false] {
        let mut single = Vec::new();
        for state in STATES {
            let key = key(&format!("{is_claim} {state}"), 0);
            let next = prepare(&store, state, &key).await;
            single.push((operate(is_claim, &key, next).await, value(&server, &key).await));
        }
        let keys: Vec<_> =
            (1..=8).flat_map(|copy| STATES.map(|state| (state, key(&format!("{is_claim} {state}"), copy)))).collect();
        let mut requests = Vec::new();
        for (state, key) in &keys {
            requests.push(prepare(&store, state, key).await);
        }
        let answers = join_all(keys.iter().zip(&requests).map(|((_, key), next)| operate(is_claim, key, *next))).await;
        for (((state, key), answer), expected) in keys.iter().zip(&answers).zip(single.iter().cycle()) {
            assert_eq!((answer, &value(&server, key).await), (&expected.0, &expected.1), "{state}");
        }
    }
    let claims = store_claims(&store).await;
    assert!(claims.iter().all(|key| !key.as_str().contains("false record")), "completed claims leave the index");
}

async fn store_claims(store: &RedisStore) -> Vec<RecordKey> {
    use idempotent_runtime::store::StoreAdmin;
    let page = store.claims(None, 1000).await.expect("it lists").expect("it has an index");
    page.entries.into_iter().map(|entry| entry.key).collect()
}

/// The value of the key without its token, and whether it expires.
async fn value(server: &RedisServer, key: &RecordKey) -> (String, bool) {
    let name = format!("idempotency:{}", key.as_str());
    let mut connection = server.connection().await;
    let value: Option<String> = redis::cmd("GET").arg(&name).query_async(&mut connection).await.expect("a value");
    let left: i64 = redis::cmd("PTTL").arg(&name).query_async(&mut connection).await.expect("it answers");
    let value = value.unwrap_or_default();
    let (state, rest) = value.split_once("\"token\":\"").unwrap_or_default();
    let rest = rest.split_once('"').unwrap_or_default().1;
    let rest = rest.split_once(",\"lease_until\"").map_or(rest, |(rest, _)| rest);
    (format!("{state}{rest}"), left >= 0)
}

/// One claim of each key, and the others of one burst learn that it is in flight.
#[tokio::test]
async fn claims_of_one_key_in_a_burst_get_it_once() {
    let server = RedisServer::start(&[]).await;
    let store = connect(&server).await;
    let keys: Vec<_> = (0..100).map(|n| key("burst", n % 10)).collect();
    let claims = join_all(keys.iter().map(|key| store.claim(key, claim_request()))).await;
    for name in 0..10 {
        let of_key = || (0..100).filter(|n| n % 10 == name).map(|n| &claims[n]);
        let acquired = of_key().filter(|claim| is_first_attempt(claim)).count();
        let in_flight = of_key().filter(|claim| matches!(claim, Ok(Claim::InFlight { .. }))).count();
        assert_eq!((acquired, in_flight), (1, 9));
    }
    assert_eq!(store.release(&key("burst", 0), Token::unique()).await.expect("it answers"), Held::No);
}
