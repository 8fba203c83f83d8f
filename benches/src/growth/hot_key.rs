//! One key that all clients send, compared with as many keys as there are requests.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use idempotent_runtime::store::{Claim, MemoryStore, PostgresStore, RedisStore, SqliteStore, Store, StoreAdmin};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use serde::{Deserialize, Serialize};

use super::Scale;
use super::child::{Task, outcome};
use crate::engines::contest::{Effort, Outcome, Side, contest, work};
use crate::engines::postgres::pool;
use crate::engines::sample::{execute, record_key, replay, request};
use crate::report::{Section, Table, figure};

const CALLERS: usize = 64;

const ROUNDS: usize = 5;

/// The number of keys with a record, and the number of keys with a claim.
const KEYS: usize = 1_000;

/// The store of the records.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Engine {
    /// In the memory of the process.
    Memory,
    /// In a file.
    Sqlite,
    /// On a Redis server.
    Redis,
    /// On a PostgreSQL server.
    Postgres,
}

/// The rates of one key and of many keys per second, and the median of the quotients of the rounds.
pub(super) type Rates = [(f64, f64, f64); 2];

/// Work with a store of any kind.
pub(super) trait WithStore {
    type Outcome;

    async fn run<S: StoreAdmin + Clone>(self, store: S) -> Self::Outcome;
}

/// Opens a new store, and closes it after the work.
pub(super) async fn with_store<W: WithStore>(engine: Engine, work: W) -> W::Outcome {
    match engine {
        Engine::Memory => work.run(MemoryStore::new()).await,
        Engine::Sqlite => {
            let folder = tempfile::tempdir().expect("a temporary folder");
            work.run(SqliteStore::open(folder.path().join("store.db")).await.expect("the store opens")).await
        }
        Engine::Redis => {
            let server = RedisServer::start(&[]).await;
            work.run(RedisStore::connect(&server.url()).await.expect("the server answers")).await
        }
        Engine::Postgres => {
            let server = PostgresServer::start(&["fsync=on"]).await;
            let store = PostgresStore::new(pool(&server.database().await, 16).await);
            store.migrate().await.expect("the tables are made");
            work.run(store).await
        }
    }
}

/// Measures replays, and rejections of a claimed key.
pub(super) async fn rates(engine: Engine, seconds: f64) -> Rates {
    struct Measuring(Engine, f64);
    impl WithStore for Measuring {
        type Outcome = Rates;

        async fn run<S: StoreAdmin + Clone>(self, store: S) -> Rates {
            of(store, self.0, self.1).await
        }
    }
    with_store(engine, Measuring(engine, seconds)).await
}

async fn of<S: Store>(store: S, engine: Engine, seconds: f64) -> Rates {
    let store = Arc::new(store);
    join_all((0..KEYS).map(|number| execute(&*store, number))).await;
    join_all((KEYS..2 * KEYS).map(|number| {
        let store = &store;
        async move { store.claim(&record_key(number), request()).await.expect("the store claims") }
    }))
    .await;
    let effort = Effort { rounds: ROUNDS, round: Duration::from_secs_f64(seconds) };
    let replays = |keys: usize| {
        let store = Arc::clone(&store);
        let replays = work(move |number| {
            let store = Arc::clone(&store);
            async move { replay(&*store, number % keys).await }
        });
        Side::new(CALLERS, replays)
    };
    let rejections = |keys: usize| {
        let store = Arc::clone(&store);
        let rejections = work(move |number| {
            let store = Arc::clone(&store);
            async move {
                let claim = store.claim(&record_key(KEYS + number % keys), request()).await;
                assert!(matches!(claim, Ok(Claim::InFlight { .. })), "{claim:?}");
            }
        });
        Side::new(CALLERS, rejections)
    };
    let replayed = contest(&format!("{engine:?}, replays"), effort, &replays(1), &replays(KEYS)).await;
    let rejected = contest(&format!("{engine:?}, rejections"), effort, &rejections(1), &rejections(KEYS)).await;
    [replayed, rejected].map(|Outcome { ours, bare, ratio }| (ours, bare, ratio))
}

/// All stores, each in a separate process.
pub(super) fn measure(section: &mut Section, scale: Scale) -> anyhow::Result<()> {
    let seconds = scale.seconds(0.4);
    let mut table = Table::new(
        &format!("Claims per second of {CALLERS} callers: medians of {ROUNDS} alternating rounds"),
        &["", "one key", "many keys", "ratio"],
    );
    for store in [Engine::Memory, Engine::Sqlite, Engine::Redis, Engine::Postgres] {
        let rates: Rates = outcome(&Task::HotKey { store, seconds })?;
        for (what, (hot, spread, ratio)) in ["replays", "rejected in flight"].into_iter().zip(rates) {
            table.row([format!("{store:?}: {what}"), figure(hot, ""), figure(spread, ""), figure(ratio, "")]);
        }
    }
    section.tables.push(table);
    section.text.push(format!(
        "All clients send one key, compared with {KEYS} keys in turn: how much a store loses if all calls are for one entry."
    ));
    Ok(())
}
