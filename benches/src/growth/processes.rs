//! One to three processes with one server: pairs of claim and completion, some of them for a key that all processes
//! want.

use std::collections::HashSet;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use futures_util::future::join_all;
use idempotent_runtime::RecordKey;
use idempotent_runtime::store::{Claim, Held, PostgresStore, RedisStore, Store};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPoolOptions;

use super::Scale;
use super::child::{Task, finish, start};
use crate::engines::contest::next_number;
use crate::engines::sample::{TTL, record, request};
use crate::report::{Section, Table, figure};
use crate::scenario::key;

const MOST_PROCESSES: usize = 3;

/// The number of callers in each process.
const CALLERS: usize = 64;

/// The number of connections of each process, for PostgreSQL.
const CONNECTIONS: u32 = 16;

/// One of this many calls of a caller is for the key of the current millisecond, which is the same in all processes.
const CONTESTED: usize = 8;

/// The work of one process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Work {
    /// The URL of the server.
    url: String,
    /// The number of the process among all processes that use this server.
    process: usize,
    /// When all processes begin, in milliseconds since 1970.
    begin: u64,
    /// How long they run.
    millis: u64,
}

/// What one process did.
#[derive(Serialize, Deserialize)]
pub(super) struct Done {
    pairs: usize,
    /// The number of claims for the key of a millisecond that another caller had.
    rejected: usize,
    /// The milliseconds whose keys this process got.
    granted: Vec<u64>,
}

/// Claims and completes until the time is over.
pub(super) async fn pairs(work: &Work) -> Done {
    if work.url.starts_with("redis:") {
        let store = RedisStore::connect(&work.url).await.expect("the server answers");
        run(Arc::new(store), work).await
    } else {
        let options = PgPoolOptions::new().max_connections(CONNECTIONS).min_connections(CONNECTIONS);
        let pool = options.test_before_acquire(false).connect(&work.url).await.expect("the server answers");
        run(Arc::new(PostgresStore::new(pool)), work).await
    }
}

async fn run<S: Store>(store: Arc<S>, work: &Work) -> Done {
    let (process, end) = (work.process, work.begin + work.millis);
    tokio::time::sleep(Duration::from_millis(work.begin.saturating_sub(millis_now()))).await;
    let callers = (0..CALLERS).map(|caller| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let mut done = Done { pairs: 0, rejected: 0, granted: Vec::new() };
            for call in caller.. {
                let now = millis_now();
                if now >= end {
                    break;
                }
                if call % CONTESTED > 0 {
                    let own = RecordKey::new("own", None, &key(process, next_number()));
                    assert!(pair(&*store, &own).await, "no other process claims this key");
                    done.pairs += 1;
                } else if pair(&*store, &RecordKey::new("contested", None, &now.to_string())).await {
                    done.pairs += 1;
                    done.granted.push(now);
                } else {
                    done.rejected += 1;
                }
            }
            done
        })
    });
    let mut all = Done { pairs: 0, rejected: 0, granted: Vec::new() };
    for done in join_all(callers).await {
        let done = done.expect("the caller ends");
        all.pairs += done.pairs;
        all.rejected += done.rejected;
        all.granted.extend(done.granted);
    }
    all
}

/// Claims the key and completes it. Returns whether the key was granted.
async fn pair(store: &impl Store, key: &RecordKey) -> bool {
    let request = request();
    match store.claim(key, request).await.expect("the server answers") {
        Claim::Acquired { attempt } => {
            assert_eq!(attempt, 1);
            let held = store.complete(key, request.token, record(), TTL).await.expect("the server answers");
            assert_eq!(held, Held::Yes);
            true
        }
        Claim::InFlight { .. } | Claim::Completed(_) => false,
        claim => panic!("no lease expires within seconds: {claim:?}"),
    }
}

fn millis_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
    u64::try_from(since.as_millis()).expect("the milliseconds fit")
}

/// Measures both servers, one after another.
pub(super) async fn measure(section: &mut Section, scale: Scale) -> anyhow::Result<()> {
    let mut table = Table::new(
        &format!("Claims with their completion per second, {CALLERS} callers in each process"),
        &["", "in all", "of one process", "granted of the contested keys", "rejected", "granted twice"],
    );
    let redis = RedisServer::start(&[]).await;
    let twice = over("Redis", &redis.url(), &mut table, scale)?;
    let postgres = PostgresServer::start(&["fsync=on"]).await;
    let database = postgres.database().await;
    PostgresStore::new(database.pool(1).await).migrate().await?;
    let twice = twice + over("PostgreSQL", &database.url(), &mut table, scale)?;
    section.tables.push(table);
    section.at_most("keys granted twice among three processes", 0.0, twice as f64, "");
    section.text.push(format!(
        "The processes and the server share this machine's two cores, so more processes cannot raise the throughput here. The \
         rows show how little they lose, and that no key is granted twice. Every {CONTESTED}th call of each caller claims a \
         key that all callers of all processes claim in the same millisecond. Redis writes its append-only file, and \
         PostgreSQL runs with `fsync=on`."
    ));
    Ok(())
}

/// Measures one server. Returns how many keys were granted twice.
fn over(server: &str, url: &str, table: &mut Table, scale: Scale) -> anyhow::Result<usize> {
    let seconds = scale.seconds(4.0);
    let (mut used, mut granted_twice) = (0, 0);
    for processes in 1..=MOST_PROCESSES {
        let begin = millis_now() + 1_000;
        let work = |number| Work { url: url.to_owned(), process: number, begin, millis: (seconds * 1_000.0) as u64 };
        let children = (used..used + processes).map(|number| start(&Task::Pairs(work(number))));
        let children: Vec<Child> = children.collect::<anyhow::Result<_>>()?;
        used += processes;
        let done: Vec<Done> = children.into_iter().map(finish).collect::<anyhow::Result<_>>()?;
        ensure!(millis_now() >= begin, "no process may end before it began");

        let (mut seen, mut twice) = (HashSet::new(), 0);
        for millis in done.iter().flat_map(|done| &done.granted) {
            twice += usize::from(!seen.insert(millis));
        }
        granted_twice += twice;
        let rate = done.iter().map(|done| done.pairs).sum::<usize>() as f64 / seconds;
        let rejected = done.iter().map(|done| done.rejected).sum::<usize>();
        let plural = if processes == 1 { "process" } else { "processes" };
        eprintln!("{server}, {processes} {plural}: {rate:.0} pairs/s, {} contested, {twice} twice", seen.len());
        table.row([
            format!("{server}, {processes} {plural}"),
            figure(rate, ""),
            figure(rate / processes as f64, ""),
            seen.len().to_string(),
            rejected.to_string(),
            twice.to_string(),
        ]);
    }
    Ok(granted_twice)
}
