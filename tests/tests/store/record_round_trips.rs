//! A store returns every record unchanged.

use std::time::Duration;

use idempotent_runtime::store::{Claim, EntryState, Held, MemoryStore, RedisStore, SqliteStore, StoreAdmin, Token};
use idempotent_runtime::{Record, RecordKey};
use idempotent_tests::any;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::sqlite::claim_request;
use idempotent_tests::stores;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Runtime;

const TTL: Duration = Duration::from_hours(1);

async fn in_and_out(store: &impl StoreAdmin, record: &Record) -> (Claim, Option<EntryState>) {
    let request = claim_request();
    let key = RecordKey::new("round-trips", Some("any"), &format!("{:x}", Token::unique().as_u128()));
    assert_eq!(store.claim(&key, request).await.expect("the store claims"), Claim::Acquired { attempt: 1 });
    let held = store.complete(&key, request.token, record.clone(), TTL).await.expect("the store completes");
    assert_eq!(held, Held::Yes);
    let claim = store.claim(&key, claim_request()).await.expect("the store answers");
    let entry = store.get(&key).await.expect("the store looks");
    (claim, entry.map(|entry| entry.state))
}

fn every_record_comes_back(runtime: &Runtime, store: &impl StoreAdmin) {
    let config = Config { cases: 96, failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(config).run(&any::record(), |record| {
        let (claim, entry) = runtime.block_on(in_and_out(store, &record));
        let state = EntryState::Completed {
            status: record.status,
            body_bytes: record.body_bytes().map(|body| body.len() as u64),
            recorded_at: record.recorded_at,
        };
        prop_assert_eq!(entry, Some(state));
        prop_assert_eq!(claim, Claim::Completed(record));
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

#[test]
fn from_memory() {
    every_record_comes_back(&runtime(), &MemoryStore::new());
}

#[test]
fn from_sqlite() {
    let (runtime, folder) = (runtime(), tempfile::tempdir().expect("a temporary folder"));
    let opened = runtime.block_on(SqliteStore::open(folder.path().join("idempotency.db")));
    every_record_comes_back(&runtime, &opened.expect("the store opens"));
}

#[test]
fn from_postgres() {
    let runtime = runtime();
    let store = runtime.block_on(stores::postgres(2));
    every_record_comes_back(&runtime, &store);
}

#[test]
fn from_redis() {
    let runtime = runtime();
    let store = runtime.block_on(async { RedisStore::connect(&RedisServer::shared().await.url()).await });
    every_record_comes_back(&runtime, &store.expect("the store opens"));
}
