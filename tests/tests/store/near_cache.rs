//! Records at hand: replayed without the store, and no longer than the registry says.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::{MemoryStore, PostgresStore, RedisStore, StoreAdmin};
use idempotent_runtime::{Idempotency, RecordKey, Registry, RegistryBuilder, SealingKey, Tx, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Answer, Fault, FaultyStore, Runs, Server, answer, eventually};
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

/// One process of an application.
async fn serve(registry: RegistryBuilder, runs: &Runs) -> Server {
    let registry = registry.store_timeout(Duration::from_millis(300)).build();
    let app = Router::new()
        .route("/charges", post(charge))
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
    let registry = Registry::builder(connect(&redis).await).seal_with([SealingKey::from_bytes([1; 32])]);
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

/// The store has kept the record since the first try, whose answer did not come.
#[tokio::test]
async fn record_with_a_lost_answer_is_not_kept_beyond_its_ttl() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let server = serve(Registry::builder(store.clone()).near_cache(MEGABYTE, HOUR), &runs).await;
    let another_process = serve(Registry::builder(store.clone()), &runs).await;
    store.on_complete(Fault::AnswerIsLost);
    assert_eq!(send(&server, "/short", "k", "tea").await.text(), "tea 1");
    // Each try is cut off after a while.
    eventually(async || store.completions(), |tries| *tries >= 2).await;
    store.on_complete(Fault::None);
    eventually(async || store.completions(), |tries| *tries >= 3).await;

    let elsewhere = async || send(&another_process, "/short", "k", "tea").await.text().to_owned();
    eventually(elsewhere, |text| text == "tea 2").await;
    assert_eq!(send(&server, "/short", "k", "tea").await.text(), "tea 2");
}

#[tokio::test]
async fn result_of_a_step_is_asked_of_the_store() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let server = serve(Registry::builder(store.clone()).near_cache(MEGABYTE, HOUR), &runs).await;
    // One of the handler, one of its step.
    for claims in [2, 4] {
        let failed = send(&server, "/fails-after-a-step", "k", "tea").await;
        assert_eq!((failed.status, failed.text()), (StatusCode::INTERNAL_SERVER_ERROR, "1"));
        assert_eq!(store.claims(), claims);
    }
}

#[tokio::test]
async fn what_finds_no_room_is_replayed_by_the_store() {
    let (redis, runs) = (RedisServer::start(&[]).await, Runs::free());
    let server = serve(Registry::builder(connect(&redis).await).near_cache(8_000, HOUR), &runs).await;
    let keys: Vec<String> = (0..100).map(|number| format!("k{number}")).collect();
    let replays = async || {
        let answers = join_all(keys.iter().map(|key| send(&server, "/charges", key, "tea"))).await;
        answers.iter().filter(|answer| answer.is_replay()).count()
    };
    assert_eq!(replays().await, 0);
    assert_eq!(replays().await, keys.len());

    redis.signal("STOP");
    let at_hand = replays().await;
    redis.signal("CONT");
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
