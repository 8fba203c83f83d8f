//! Redis: claims in pipelines and records in scripts, compared with bare commands of the same size over the same kind of
//! connection.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use idempotent_runtime::store::{RedisStore, Store};
use idempotent_tests::redis::RedisServer;
use redis::Client;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};

use super::contest::{Effort, Outcome, Side, contest, next_number, work};
use super::sample::{TTL, execute, record, record_key, replay, request};
use crate::report::{Section, Table, figure};

const CALLERS: usize = 64;

/// Keys whose records are replayed.
const RECORDED: usize = 1_000;

/// Measures first executions and replays.
///
/// # Panics
///
/// When the server does not answer.
pub async fn measure(section: &mut Section, effort: Effort) {
    // A rewrite of the append-only file would take a core from the measured process.
    let server = RedisServer::start(&["--auto-aof-rewrite-percentage 0"]).await;
    let store = RedisStore::connect(&server.url()).await.expect("the store opens");
    let bare = connect(&server).await;
    let (claim, completed) = values(&server, &store).await;
    let (claim_bytes, completed_bytes) = (claim.len(), completed.len());

    let (ours, alone) = (first_of(&store), bare_first(&bare, &claim, &completed));
    let first = contest("Redis, first execution", effort, &ours, &alone).await;
    let script = redis::cmd("SCRIPT").arg("LOAD").arg(FENCED_SET).query_async(&mut bare.clone()).await;
    let script: String = script.expect("the server takes the script");
    let alone = fenced_first(&bare, script, &claim, &completed);
    let fenced = contest("Redis, first execution that is fenced", effort, &ours, &alone).await;
    let _: () = server.command("FLUSHALL ASYNC").await;
    let names: Arc<[String]> = fill(&server, &store).await.into();
    let ours = replay_of(&store);
    let replayed = contest("Redis, replay", effort, &ours, &bare_replay(&bare, &names)).await;
    let claimed = contest("Redis, replay by `SET`", effort, &ours, &claim_completed(&bare, &names, &claim)).await;
    let counted = round_trips(&server, &store).await;

    let mut table = Table::new(
        &format!("Redis: operations per second, {CALLERS} concurrent callers over one connection"),
        &["", "RedisStore", "bare commands", "ratio", "round trips"],
    );
    let mut row = |what: &str, Outcome { ours, bare, ratio }: &Outcome, trips: u64| {
        table.row([what.into(), figure(*ours, ""), figure(*bare, ""), figure(*ratio, ""), trips.to_string()]);
    };
    row("first execution, against `SET NX PX` and `SET PX`", &first, counted.0);
    row("first execution, against `SET NX GET PX` and the shortest script that compares the token", &fenced, counted.0);
    row("replay, against `GET`", &replayed, counted.1);
    row("replay, against `SET NX GET PX` whose answer is not read", &claimed, counted.1);
    section.tables.push(table);
    section.at_least("Redis: first executions, of two bare round trips", 0.85, first.ratio, "×");
    section.at_least("Redis: replays, of one bare round trip", 0.85, replayed.ratio, "×");
    section.at_most("Redis: round trips of a first execution", 2.0, counted.0 as f64, "");
    section.at_most("Redis: round trips of a replay", 1.0, counted.1 as f64, "");
    let version = server.command::<String>("INFO server").await;
    let version = version.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or_default().to_owned();
    section.text.push(format!(
        "Redis {version} with its append-only file, over loopback. Both sides use the redis crate's `ConnectionManager`, each \
         with its own connection. The bare commands write the same values as the store: {claim_bytes} bytes for a claim and \
         {completed_bytes} for a record."
    ));
    section.text.push(
        "While calls are under way, the claims of other callers gather for one pipeline, and their completions for one script of \
         up to 32 keys. The round trips are those of a lone caller. Redis 7 has no command that writes only for the holder of a \
         token, so a completion is a script. In batches of 32, the server spent 3.3 µs of processor time on a `SET` of a claim's or \
         a record's size, 5.2 µs on each key of a script with only such a `SET`, and 6.2 µs if the script also compares a token. A \
         replay does more than `GET`: it would claim the key if the key had no entry, and it parses the record's JSON, while the \
         bare command's answer is not read."
            .to_owned(),
    );
}

/// Connects as the store does.
async fn connect(server: &RedisServer) -> ConnectionManager {
    let config = ConnectionManagerConfig::new()
        .set_response_timeout(Some(Duration::from_secs(30)))
        .set_connection_timeout(Some(Duration::from_secs(5)))
        .set_max_delay(Duration::from_secs(1));
    let client = Client::open(server.url()).expect("the URL is well-formed");
    ConnectionManager::new_with_config(client, config).await.expect("the server answers")
}

/// The values that the store writes for a claim and for a record.
async fn values(server: &RedisServer, store: &RedisStore) -> (Bytes, Bytes) {
    let (number, request) = (next_number(), request());
    let (key, name) = (record_key(number), self::name(number));
    store.claim(&key, request).await.expect("the store claims");
    let claim = server.command::<Vec<u8>>(&format!("GET {name}")).await;
    let _ = store.complete(&key, request.token, record(), TTL).await.expect("the store completes");
    (claim.into(), server.command::<Vec<u8>>(&format!("GET {name}")).await.into())
}

fn first_of(store: &RedisStore) -> Side {
    let store = store.clone();
    let ours = work(move |number| {
        let store = store.clone();
        async move { execute(&store, number).await }
    });
    Side::new(CALLERS, ours)
}

fn bare_first(connection: &ConnectionManager, claim: &Bytes, completed: &Bytes) -> Side {
    let (connection, claim, completed) = (connection.clone(), claim.clone(), completed.clone());
    let bare = work(move |number| {
        let (mut connection, claim, completed) = (connection.clone(), claim.clone(), completed.clone());
        async move {
            let name = self::name(number);
            let mut set = redis::cmd("SET");
            set.arg(&name).arg(&claim[..]).arg("NX").arg("PX").arg(ttl());
            let _: () = set.query_async(&mut connection).await.expect("the server answers");
            let mut set = redis::cmd("SET");
            set.arg(&name).arg(&completed[..]).arg("PX").arg(ttl());
            let _: () = set.query_async(&mut connection).await.expect("the server answers");
        }
    });
    Side::new(CALLERS, bare)
}

/// A write in Redis that only the holder of a token may make.
const FENCED_SET: &str = "\
    if string.sub(redis.call('GET', KEYS[1]) or '', 1, #ARGV[3]) ~= ARGV[3] then return 0 end \
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1";

fn fenced_first(connection: &ConnectionManager, script: String, claim: &Bytes, completed: &Bytes) -> Side {
    let (connection, claim, completed) = (connection.clone(), claim.clone(), completed.clone());
    let script: Arc<str> = script.into();
    let bare = work(move |number| {
        let (mut connection, script) = (connection.clone(), Arc::clone(&script));
        let (claim, completed) = (claim.clone(), completed.clone());
        async move {
            let name = self::name(number);
            let mut set = redis::cmd("SET");
            set.arg(&name).arg(&claim[..]).arg("NX").arg("GET").arg("PX").arg(ttl());
            let stood: Option<Vec<u8>> = set.query_async(&mut connection).await.expect("the server answers");
            assert_eq!(stood, None);
            let mut set = redis::cmd("EVALSHA");
            set.arg(&*script).arg(1).arg(&name).arg(&completed[..]).arg(ttl()).arg(&claim[..60]);
            let is_set: u32 = set.query_async(&mut connection).await.expect("the server answers");
            assert_eq!(is_set, 1);
        }
    });
    Side::new(CALLERS, bare)
}

fn name(number: usize) -> String {
    format!("idempotency:{}", record_key(number).as_str())
}

fn ttl() -> u64 {
    u64::try_from(TTL.as_millis()).expect("a day fits")
}

/// Writes records to replay, and returns their names.
async fn fill(server: &RedisServer, store: &RedisStore) -> Vec<String> {
    for number in 0..RECORDED {
        execute(store, number).await;
    }
    assert_eq!(server.command::<usize>("DBSIZE").await, RECORDED);
    (0..RECORDED).map(name).collect()
}

fn replay_of(store: &RedisStore) -> Side {
    let store = store.clone();
    let ours = work(move |number| {
        let store = store.clone();
        async move { replay(&store, number % RECORDED).await }
    });
    Side::new(CALLERS, ours)
}

fn bare_replay(connection: &ConnectionManager, names: &Arc<[String]>) -> Side {
    let (connection, names) = (connection.clone(), Arc::clone(names));
    let bare = work(move |number| {
        let (mut connection, names) = (connection.clone(), Arc::clone(&names));
        async move {
            let mut get = redis::cmd("GET");
            get.arg(&names[number % RECORDED]);
            let value: Vec<u8> = get.query_async(&mut connection).await.expect("the server answers");
            assert!(!value.is_empty());
        }
    });
    Side::new(CALLERS, bare)
}

fn claim_completed(connection: &ConnectionManager, names: &Arc<[String]>, claim: &Bytes) -> Side {
    let (connection, names, claim) = (connection.clone(), Arc::clone(names), claim.clone());
    let bare = work(move |number| {
        let (mut connection, names, claim) = (connection.clone(), Arc::clone(&names), claim.clone());
        async move {
            let mut set = redis::cmd("SET");
            set.arg(&names[number % RECORDED]).arg(&claim[..]).arg("NX").arg("GET").arg("PX").arg(ttl());
            let value: Vec<u8> = set.query_async(&mut connection).await.expect("the server answers");
            assert!(!value.is_empty());
        }
    });
    Side::new(CALLERS, bare)
}

/// The round trips of a first execution and of a replay, as the server counts them.
async fn round_trips(server: &RedisServer, store: &RedisStore) -> (u64, u64) {
    let calls = async || {
        let stats: String = server.command("INFO commandstats").await;
        ["cmdstat_evalsha", "cmdstat_set", "cmdstat_get"].map(|name| {
            let line = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":calls=")).unwrap_or("0,");
            line.split(',').next().and_then(|calls| calls.parse::<u64>().ok()).expect("a number of calls")
        })
    };
    // The server also counts commands that scripts call. Each script calls `GET` before `SET`, so the other `SET`s came
    // from clients.
    let arrived = |before: [u64; 3], after: [u64; 3]| {
        let [scripts, sets, gets] = std::array::from_fn(|index| after[index] - before[index]);
        scripts + sets.saturating_sub(gets)
    };
    let number = next_number() + RECORDED;
    let before = calls().await;
    execute(store, number).await;
    let executed = calls().await;
    replay(store, number).await;
    (arrived(before, executed), arrived(executed, calls().await))
}
