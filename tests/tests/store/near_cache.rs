//! The near cache: records are replayed without the store, but no longer than the registry allows.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::{MemoryStore, PostgresStore, RedisStore, StoreAdmin};
use idempotent_runtime::{Idempotency, RecordKey, Registry, RegistryBuilder, Tx, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Answer, Fault, FaultyStore, Runs, Server, alone, answer, eventually, sealing_key};
use sqlx::Postgres;

const MEGABYTE: usize = 1_000_000;
const HOUR: Duration = Duration::from_hours(1);

type Charged = (StatusCode, [(&'static str, &'static str); 1], String);

async fn charged(runs: &Runs, body: &str) -> Charged {
    (StatusCode::CREATED, [("x-charge", "1")], format!("{body} {}", runs.run().await))
}

#[idempotent(scope = "near-charges")]
async fn charge(State(runs): State<Runs>, body: String) -> Charged {
    charged(&runs, &body).await
}

#[idempotent(scope = "near-short", ttl = "2s", lease = "1s")]
async fn short(State(runs): State<Runs>, body: String) -> Charged {
    charged(&runs, &body).await
}

#[idempotent(scope = "in-transaction")]
async fn in_transaction(mut tx: Tx<Postgres>, State(runs): State<Runs>, body: String) -> Charged {
    sqlx::query("SELECT 1").execute(&mut *tx).await.expect("the server answers");
    charged(&runs, &body).await
}

#[idempotent(scope = "near-steps")]
async fn fails_after_a_step(
    State(runs): State<Runs>,
    idempotency: Idempotency,
) -> Result<(StatusCode, String), Response> {
    let run = idempotency.step("reserve", async || Ok::<_, Response>(runs.run().await)).await?;
    Ok((StatusCode::INTERNAL_SERVER_ERROR, run.to_string()))
}

/// Answers with a small part of a large buffer. A handler gets such a part from an HTTP client or a file.
#[idempotent(scope = "near-slices")]
async fn slice() -> Bytes {
    Bytes::from(vec![1; MEGABYTE]).slice(..100)
}

#[idempotent(scope = "near-large")]
async fn large(State(runs): State<Runs>) -> Vec<u8> {
    runs.run().await;
    vec![b'x'; 900_000]
}

/// Starts the server of one process of an application.
async fn serve(registry: RegistryBuilder, runs: &Runs) -> Server {
    let registry = registry.store_timeout(Duration::from_millis(300)).build();
    let app = Router::new()
        .route("/charges", post(charge))
        .route("/slice", post(slice))
        .route("/large", post(large))
        .route("/short", post(short))
        .route("/in-transaction", post(in_transaction))
        .route("/fails-after-a-step", post(fails_after_a_step));
    Server::start(app.with_state(runs.clone()).layer(registry.layer())).await
}

async fn send(server: &Server, path: &str, key: &str, body: &'static str) -> Answer {
    answer(server.post(path).header("idempotency-key", key).body(body)).await
}

async fn connect(redis: &RedisServer) -> RedisStore {
    RedisStore::connect(&redis.url()).await.expect("the store opens")
}

fn assert_replays(replay: &Answer, first: &Answer) {
    assert_eq!((replay.status, replay.text(), replay.is_replay()), (first.status, first.text(), true));
    assert_eq!(replay.headers.get("x-charge"), first.headers.get("x-charge"));
}

#[tokio::test]
async fn a_replay_asks_no_redis() {
    let (redis, runs) = (RedisServer::start(&[]).await, Runs::free());
    let server = serve(Registry::builder(connect(&redis).await).near_cache(MEGABYTE, HOUR), &runs).await;
    let first = send(&server, "/charges", "k", "tea").await;

    redis.signal("STOP");
    assert_replays(&send(&server, "/charges", "k", "tea").await, &first);
    assert_eq!(send(&server, "/charges", "k", "ham").await.rejection(), "key_reused");
    assert_eq!(send(&server, "/charges", "another", "tea").await.rejection(), "store_unavailable");
    redis.signal("CONT");
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn a_replay_of_a_transaction_asks_no_postgresql() {
    let (postgres, runs) = (PostgresServer::start(&[]).await, Runs::free());
    let store = PostgresStore::new(postgres.database().await.pool(2).await);
    store.migrate().await.expect("the tables are made");
    let server = serve(Registry::builder(store).near_cache(MEGABYTE, HOUR), &runs).await;
    let first = send(&server, "/in-transaction", "k", "tea").await;
    assert_eq!(first.status, StatusCode::CREATED);

    postgres.signal("STOP");
    assert_replays(&send(&server, "/in-transaction", "k", "tea").await, &first);
    assert_eq!(send(&server, "/in-transaction", "another", "tea").await.rejection(), "store_unavailable");
    postgres.signal("CONT");
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn sealed_records_are_replayed_as_the_clear_ones() {
    let (redis, runs) = (RedisServer::start(&[]).await, Runs::free());
    let registry = Registry::builder(connect(&redis).await).seal_with([sealing_key(1)]);
    let server = serve(registry.digest_keys().near_cache(MEGABYTE, HOUR), &runs).await;
    let first = send(&server, "/charges", "k", "tea").await;

    redis.signal("STOP");
    assert_replays(&send(&server, "/charges", "k", "tea").await, &first);
    redis.signal("CONT");
}

#[tokio::test]
async fn a_purge_by_another_process_is_seen_when_the_record_is_of_age() {
    let redis = RedisServer::start(&[]).await;
    let (patient, impatient) = (Runs::free(), Runs::free());
    let an_hour = serve(Registry::builder(connect(&redis).await).near_cache(MEGABYTE, HOUR), &patient).await;
    let soon = Registry::builder(connect(&redis).await).near_cache(MEGABYTE, Duration::from_millis(200));
    let soon = serve(soon, &impatient).await;
    let first = send(&an_hour, "/charges", "one", "tea").await;
    send(&soon, "/charges", "another", "tea").await;

    let operator = connect(&redis).await;
    for key in ["one", "another"] {
        assert!(operator.purge(&RecordKey::new("near-charges", None, key)).await.expect("the server answers"));
    }

    eventually(async || send(&soon, "/charges", "another", "tea").await.text().to_owned(), |text| text == "tea 2")
        .await;
    assert_replays(&send(&an_hour, "/charges", "one", "tea").await, &first);
    assert_eq!(patient.started(), 1);
}

#[tokio::test]
async fn no_record_is_kept_beyond_its_time_to_live() {
    let (redis, runs) = (RedisServer::start(&[]).await, Runs::free());
    let server = serve(Registry::builder(connect(&redis).await).near_cache(MEGABYTE, HOUR), &runs).await;
    send(&server, "/short", "k", "tea").await;
    assert!(send(&server, "/short", "k", "tea").await.is_replay());

    eventually(async || send(&server, "/short", "k", "tea").await.text().to_owned(), |text| text == "tea 2").await;
}

/// The store has the record since the first try, whose answer was lost. The ttl of the record began then.
#[tokio::test]
async fn record_with_a_lost_answer_is_not_kept_beyond_its_ttl() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let server = serve(Registry::builder(store.clone()).near_cache(MEGABYTE, HOUR), &runs).await;
    let another_process = serve(Registry::builder(store.clone()), &runs).await;
    store.on_complete(Fault::AnswerIsLost);
    assert_eq!(send(&server, "/short", "k", "tea").await.text(), "tea 1");
    // Each try ends at `store_timeout`.
    eventually(async || store.completions(), |tries| *tries >= 2).await;
    store.on_complete(Fault::None);
    eventually(async || store.completions(), |tries| *tries >= 3).await;

    let elsewhere = async || send(&another_process, "/short", "k", "tea").await.text().to_owned();
    eventually(elsewhere, |text| text == "tea 2").await;
    assert_eq!(send(&server, "/short", "k", "tea").await.text(), "tea 2");
}

#[idempotent(scope = "near-waits", in_flight = wait("10s"))]
async fn waits(State(runs): State<Runs>, body: String) -> Charged {
    charged(&runs, &body).await
}

/// A waiter finds that the request for which it waited has left no record.
#[tokio::test]
async fn look_that_finds_nothing_forgets_no_other_record() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let registry = Registry::builder(store.clone()).near_cache(MEGABYTE, HOUR).build();
    let app = Router::new().route("/charges", post(charge)).route("/waits", post(waits));
    let server = Server::start(app.with_state(runs.clone()).layer(registry.layer())).await;
    let other = store.seed_in_flight(RecordKey::new("near-waits", None, "w")).await;

    store.on_complete(Fault::AnswerIsLate);
    // An absent key keeps the records of its group of keys out of the cache. There are 64 groups, so all three keys are
    // in the group of the absent one only once in 262,144 runs.
    let keys = ["k1", "k2", "k3"];
    let charge = |key| tokio::spawn(answer(server.post("/charges").header("idempotency-key", key).body("tea")));
    let charging = keys.map(charge);
    eventually(async || store.completions(), |tries| *tries == keys.len()).await;
    let waiting = server.post("/waits").header("idempotency-key", "w").body("tea");
    let waiting = tokio::spawn(answer(waiting));
    eventually(async || store.looks(), |looks| *looks >= 1).await;
    other.release().await.expect("the store answers");
    assert_eq!(waiting.await.expect("it answers").rejection(), "not_recorded");
    store.let_through();
    let mut first = Vec::new();
    for charging in charging {
        first.push(charging.await.expect("it answers"));
    }

    let claims = store.claims();
    for (key, first) in keys.into_iter().zip(&first) {
        assert_replays(&send(&server, "/charges", key, "tea").await, first);
    }
    assert!(store.claims() < claims + keys.len(), "none of the records is at hand");
}

#[tokio::test]
async fn result_of_a_step_is_asked_of_the_store() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let server = serve(Registry::builder(store.clone()).near_cache(MEGABYTE, HOUR), &runs).await;
    // Each attempt claims twice: for the handler, and for its step.
    for claims in [2, 4] {
        let failed = send(&server, "/fails-after-a-step", "k", "tea").await;
        assert_eq!((failed.status, failed.text()), (StatusCode::INTERNAL_SERVER_ERROR, "1"));
        assert_eq!(store.claims(), claims);
    }
}

#[tokio::test]
async fn what_finds_no_room_is_replayed_by_the_store() {
    let (store, runs) = (FaultyStore::new(), Runs::free());
    let server = serve(Registry::builder(store.clone()).near_cache(8_000, HOUR), &runs).await;
    let keys: Vec<String> = (0..100).map(|number| format!("k{number}")).collect();
    let replays = async || {
        let answers = join_all(keys.iter().map(|key| send(&server, "/charges", key, "tea"))).await;
        answers.iter().filter(|answer| answer.is_replay()).count()
    };
    assert_eq!(replays().await, 0);
    assert_eq!(replays().await, keys.len());

    let claims = store.claims();
    assert_eq!(replays().await, keys.len());
    let at_hand = keys.len() - (store.claims() - claims);
    assert!((1..=8_000 / 512).contains(&at_hand), "{at_hand} records of more than 512 bytes in 8,000 bytes");
    assert_eq!(runs.started(), keys.len());
}

#[tokio::test]
async fn a_store_in_memory_replays_by_itself() {
    let (store, runs) = (MemoryStore::new(), Runs::free());
    let server = serve(Registry::builder(store.clone()).near_cache(MEGABYTE, HOUR), &runs).await;
    let first = send(&server, "/charges", "k", "tea").await;
    assert_replays(&send(&server, "/charges", "k", "tea").await, &first);

    assert!(store.purge(&RecordKey::new("near-charges", None, "k")).await.expect("it answers"));
    assert_eq!(send(&server, "/charges", "k", "tea").await.text(), "tea 2");
}

#[test]
fn any_room_and_any_time_will_do() {
    for max_bytes in [1, 511, 1024, usize::MAX] {
        let _ = Registry::builder(FaultyStore::new()).near_cache(max_bytes, Duration::MAX).build();
    }
}

#[test]
#[should_panic(expected = "`max_bytes` of the near cache must be greater than zero")]
fn a_cache_without_room_is_rejected() {
    let _ = Registry::builder(MemoryStore::new()).near_cache(0, HOUR);
}

#[test]
#[should_panic(expected = "`max_age` of the near cache must be greater than zero")]
fn a_cache_without_time_is_rejected() {
    let _ = Registry::builder(MemoryStore::new()).near_cache(MEGABYTE, Duration::ZERO);
}

#[tokio::test]
async fn near_cache_holds_no_buffer_that_a_body_was_cut_from() {
    if !alone(near_cache_holds_no_buffer_that_a_body_was_cut_from) {
        return;
    }
    let server = serve(Registry::builder(FaultyStore::new()).near_cache(4 * MEGABYTE, HOUR), &Runs::free()).await;
    let before = resident();
    for number in 0..100 {
        assert_eq!(send(&server, "/slice", &number.to_string(), "").await.body.len(), 100);
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} kB for bodies of 10 kB");
}

/// Returns the resident memory of this process in kB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it names it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test]
async fn body_of_nearly_the_bound_is_at_hand() {
    let (store, runs) = (FaultyStore::new(), Runs::free());
    let server = serve(Registry::builder(store.clone()).near_cache(MEGABYTE, HOUR), &runs).await;
    for key in ["first", "second"] {
        send(&server, "/large", key, "").await;
        store.on_claim(Fault::Unreachable);
        let replay = send(&server, "/large", key, "").await;
        assert_eq!((replay.is_replay(), replay.body.len()), (true, 900_000), "{key}");
        store.on_claim(Fault::None);
    }
    // The cache has room for only one of the two bodies.
    store.on_claim(Fault::Unreachable);
    assert_eq!(send(&server, "/large", "first", "").await.rejection(), "store_unavailable");
}
