//! Runs three server processes with one store, and clients that repeat every request. Then the same while one process
//! is killed every second.
//!
//! A failure prints its seed; `CHARGES_TEST_SEED=<seed>` sends the same requests again.

mod books;
mod clients;
mod servers;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use serde_json::json;

use self::books::Books;
use self::clients::{KEYS, Requests, Seed};
use self::servers::Fleet;

/// Parallel runs would only slow each other down.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn charges(over: Duration) -> Requests {
    let order = json!({ "amount": 1000, "currency": "EUR", "card": "4242" });
    Requests { path: "/charges", body: Box::new(move |_| order.clone()), over }
}

/// The time over which the requests are spread in runs that kill processes: long enough for several kills during
/// handlers.
const KILLS: Duration = Duration::from_secs(8);

/// A latency that is long enough for a server to be killed meanwhile.
const LONG: &str = "100ms";

#[tokio::test(flavor = "multi_thread")]
async fn over_one_sqlite_file_every_key_is_charged_once() {
    let _turn = ONE_AT_A_TIME.lock().await;
    every_key_is_charged_once(&Fleet::start(None, "0ms").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_one_redis_every_key_is_charged_once() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let redis = RedisServer::start(&[]).await;
    every_key_is_charged_once(&Fleet::start(Some(redis.url()), "5ms").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_one_postgres_every_key_is_charged_once() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let database = PostgresServer::shared().await.database().await;
    every_key_is_charged_once(&Fleet::start(Some(database.url()), "5ms").await).await;
}

async fn every_key_is_charged_once(fleet: &Fleet) {
    let seed = Seed::of_this_run();
    let outcome = charges(Duration::ZERO).play(fleet, seed).await;
    outcome.every_key_has_one_answer();
    assert!(outcome.answers().all(|(_, answer)| answer.status == 201), "{seed}");
    assert!(outcome.in_flight > 0, "duplicates met while the first one ran, {seed}");
    let books = Books::of(fleet).await;
    for key in outcome.keys() {
        assert_eq!(books.charges(key), 1, "{key}, {seed}");
        assert_eq!(books.times_asked(key), 1, "{key}, {seed}");
    }
    assert_eq!(books.money_moved(), KEYS, "{seed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_least_once_over_one_redis_whose_servers_are_killed() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let redis = RedisServer::start(&[]).await;
    let (fleet, seed) = (Fleet::start(Some(redis.url()), LONG).await, Seed::of_this_run());
    let outcome = fleet.killing_one_every_second(seed, charges(KILLS).play(&fleet, seed)).await;
    outcome.every_key_has_one_answer();
    let books = Books::of(&fleet).await;
    let mut repeated = 0;
    for (key, answer) in outcome.answers() {
        assert_eq!((answer.status, books.charges(key)), (201, 1), "{key}, {seed}");
        let (asked, attempt) = (books.times_asked(key), answer.member("attempt").as_u64());
        assert!((1..=attempt.unwrap_or(0)).contains(&asked.into()), "{key}: {asked} times, {answer:?}, {seed}");
        repeated += usize::from(asked > 1);
    }
    assert_eq!(books.money_moved(), KEYS, "{seed}");
    println!("{repeated} charges were begun more than once");
    assert!(repeated > 0, "no server was killed in a handler, {seed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_once_over_one_redis_whose_servers_are_killed() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let redis = RedisServer::start(&[]).await;
    no_key_is_refunded_twice(&Fleet::start(Some(redis.url()), LONG).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_once_over_one_postgres_whose_servers_are_killed() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let database = PostgresServer::shared().await.database().await;
    every_key_is_charged_exactly_once(&Fleet::start(Some(database.url()), LONG).await).await;
}

async fn every_key_is_charged_exactly_once(fleet: &Fleet) {
    let seed = Seed::of_this_run();
    let outcome = fleet.killing_one_every_second(seed, charges(KILLS).play(fleet, seed)).await;
    outcome.every_key_has_one_answer();
    assert!(outcome.answers().all(|(_, answer)| answer.status == 201), "{seed}");
    let books = Books::of(fleet).await;
    for key in outcome.keys() {
        assert_eq!(books.charges(key), 1, "{key}, {seed}");
    }
    assert_eq!(books.money_moved(), KEYS, "{seed}");
    let repeated = outcome.keys().filter(|key| books.times_asked(key) > 1).count();
    println!("{repeated} charges were begun more than once");
    assert!(repeated > 0, "no server was killed in a handler, {seed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_once_over_one_postgres_whose_servers_are_killed() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let database = PostgresServer::shared().await.database().await;
    no_key_is_refunded_twice(&Fleet::start(Some(database.url()), LONG).await).await;
}

async fn no_key_is_refunded_twice(fleet: &Fleet) {
    let seed = Seed::of_this_run();
    let charges = fleet.charges(50).await;
    let body = move |key| json!({ "charge": charges[key % charges.len()], "amount": 1 });
    let refunds = Requests { path: "/refunds", body: Box::new(body), over: KILLS };
    let outcome = fleet.killing_one_every_second(seed, refunds.play(fleet, seed)).await;
    outcome.every_key_has_one_answer();
    let books = Books::of(fleet).await;
    assert_eq!(books.most_often_asked(), Some(1), "{seed}");
    let mut unknown = 0;
    for (key, answer) in outcome.answers() {
        let (entries, asked) = (books.refunds(key), books.times_asked(key));
        match answer.code().as_deref() {
            None => assert_eq!((answer.status, entries, asked), (201, 1, 1), "{key}, {seed}"),
            Some("outcome_unknown") => {
                assert!(entries <= 1 && asked <= 1, "{key} was refunded {asked} times, {seed}");
                unknown += 1;
            }
            Some(code) => panic!("{key}: {code}, {seed}"),
        }
    }
    println!("{unknown} refunds of unknown outcome");
    assert!(unknown > 0, "no server was killed in a handler, {seed}");
}
