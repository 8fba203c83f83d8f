//! PostgreSQL: one statement for each operation, compared with bare statements on one row over an equal pool.

use std::sync::Arc;

use idempotent_runtime::store::PostgresStore;
use idempotent_tests::postgres::{Database, PostgresServer};
use sqlx::postgres::{PgExecutor, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Row};

use super::contest::{Effort, Outcome, Side, contest, next_number, work};
use super::sample::{body, execute, record_key, replay};
use crate::report::{Section, Table, figure};

const CALLERS: [usize; 4] = [1, 4, 16, 64];

/// The size of each pool.
const CONNECTIONS: u32 = 16;

/// Keys whose records are replayed.
const RECORDED: usize = 1_000;

/// The columns that a claim and its record fill, without the other parts of the store's table.
pub const BARE_TABLE: &str = "CREATE TABLE bare (digest bytea PRIMARY KEY, key text NOT NULL, state text NOT NULL, \
     fingerprint text NOT NULL, token text NOT NULL, attempt integer NOT NULL, claim_ttl bigint NOT NULL, \
     lease_until timestamptz, expires_at timestamptz NOT NULL, recorded_at timestamptz, status integer, headers jsonb, \
     body bytea) WITH (fillfactor = 70)";

const BARE_INSERT: &str = "INSERT INTO bare (digest, key, state, fingerprint, token, attempt, claim_ttl, lease_until, \
     expires_at) VALUES ($1, $2, 'claimed', $3, $4, 1, 86400000, now() + interval '30s', now() + interval '1 day')";

const BARE_RECORD: &str = "INSERT INTO bare (digest, key, state, fingerprint, token, attempt, claim_ttl, expires_at, recorded_at, \
     status, headers, body) VALUES ($1, $2, 'completed', $3, $4, 1, 86400000, now() + interval '1 day', now(), 201, $5::jsonb, $6)";

const BARE_UPDATE: &str = "UPDATE bare SET state = 'completed', lease_until = NULL, \
     expires_at = now() + interval '1 day', recorded_at = now(), status = 201, headers = $2::jsonb, body = $3 WHERE digest = $1";

const BARE_SELECT: &str = "SELECT state, fingerprint, token, attempt, status, headers::text AS headers, body FROM bare \
     WHERE digest = $1";

const FINGERPRINT: &str = "0707070707070707070707070707070707070707070707070707070707070707";

const HEADERS: &str = r#"[["content-type","application/json"],["location","/charges/ch_3MmlLrLkdIwHu7ix0snN0B15"]]"#;

/// A server that writes commits to the disk before it answers, as in production.
pub async fn server() -> PostgresServer {
    let settings = ["fsync=on", "synchronous_commit=on", "shared_preload_libraries=pg_stat_statements"];
    PostgresServer::start(&settings).await
}

/// A pool that does not ping before each use.
///
/// # Panics
///
/// When the server does not answer.
pub async fn pool(database: &Database, connections: u32) -> PgPool {
    let options = PgPoolOptions::new().max_connections(connections).test_before_acquire(false);
    options.connect(&database.url()).await.expect("the server answers")
}

/// Measures first executions and replays.
///
/// # Panics
///
/// When the server does not answer.
pub async fn measure(section: &mut Section, effort: Effort, server: &PostgresServer) {
    let database = server.database().await;
    let bare = pool(&database, CONNECTIONS).await;
    run(&bare, "CREATE EXTENSION pg_stat_statements").await;
    run(&bare, BARE_TABLE).await;
    let store = PostgresStore::new(pool(&database, CONNECTIONS).await);
    store.migrate().await.expect("the tables are made");

    let most = CALLERS[CALLERS.len() - 1];
    let mut first = Vec::new();
    for callers in CALLERS {
        let name = format!("PostgreSQL, first execution, {}", of_callers(callers));
        first.push(contest(&name, effort, &first_of(&store, callers), &bare_first(&bare, callers)).await);
    }
    run(&bare, "CREATE INDEX bare_expires_at ON bare (expires_at)").await;
    let (ours, alone) = (first_of(&store, most), bare_first(&bare, most));
    let indexed = contest("PostgreSQL, first execution with an index", effort, &ours, &alone).await;
    for number in 0..RECORDED {
        execute(&store, usize::MAX - number).await;
        write(&bare, usize::MAX - number).await;
    }
    run(&bare, "VACUUM ANALYZE").await;
    let mut replayed = Vec::new();
    for callers in CALLERS {
        let name = format!("PostgreSQL, replay, {}", of_callers(callers));
        replayed.push(contest(&name, effort, &replay_of(&store, callers), &bare_replay(&bare, callers)).await);
    }
    let counted = statements(&bare, &store).await;
    let version: String = sqlx::query_scalar("SHOW server_version").fetch_one(&bare).await.expect("it has a version");
    tell(section, &version, &Measured { first, indexed, replayed, counted });
}

/// The results: first executions and replays of each number of callers, first executions with an index, and the
/// statements of both.
struct Measured {
    first: Vec<Outcome>,
    indexed: Outcome,
    replayed: Vec<Outcome>,
    counted: (i64, i64),
}

fn tell(section: &mut Section, version: &str, measured: &Measured) {
    let Measured { first, indexed, replayed, counted } = measured;
    let most = CALLERS[CALLERS.len() - 1];
    let mut table = Table::new(
        &format!("PostgreSQL: operations per second, over {CONNECTIONS} connections"),
        &["", "PostgresStore", "bare statements", "ratio", "statements of one caller"],
    );
    let mut row = |what: &str, callers: usize, Outcome { ours, bare, ratio }: &Outcome, statements: i64| {
        let what = format!("{what}, {}", of_callers(callers));
        table.row([what, figure(*ours, ""), figure(*bare, ""), figure(*ratio, ""), statements.to_string()]);
    };
    for (callers, first) in CALLERS.into_iter().zip(first) {
        row("first execution, against `INSERT` and `UPDATE`", callers, first, counted.0);
    }
    row("the same, with an index by which expired rows are found", most, indexed, counted.0);
    for (callers, replayed) in CALLERS.into_iter().zip(replayed) {
        row("replay, against `SELECT`", callers, replayed, counted.1);
    }
    section.tables.push(table);
    for (callers, least, outcome) in [(1, 0.85, &first[0]), (most, 2.5, &first[CALLERS.len() - 1])] {
        let name = format!("PostgreSQL: first executions of {}, over two bare statements", of_callers(callers));
        section.at_least(&name, least, outcome.ratio, "×");
    }
    for (callers, least, outcome) in [(1, 0.85, &replayed[0]), (most, 1.0, &replayed[CALLERS.len() - 1])] {
        let name = format!("PostgreSQL: replays of {}, over one bare statement", of_callers(callers));
        section.at_least(&name, least, outcome.ratio, "×");
    }
    section.at_most("PostgreSQL: statements of a first execution", 2.0, counted.0 as f64, "");
    section.at_most("PostgreSQL: statements of a replay", 1.0, counted.1 as f64, "");
    section.text.push(format!(
        "PostgreSQL {version} with `fsync` and `synchronous_commit` on, over a socket, with its files on the machine's disk. \
         Each side has a pool of {CONNECTIONS} connections that does not ping. The bare table has the same columns, and no \
         index except its primary key. A row is inserted as a claim, updated to a record, and read by its primary key. While \
         statements are under way, the store gathers the claims and completions of other callers into one statement; a lone \
         caller's goes out at once."
    ));
    section.text.push(
        "One caller misses the targets because a claim is one statement that reads and, if there is no row, inserts. Its \
         executor prepares both, even for a replay. With `pgbench` and prepared statements it took 0.15 ms; the read alone took \
         0.085 ms; the statement without `ON CONFLICT DO UPDATE` took 0.135 ms. Two statements would be cheaper for the server, \
         but each first execution would need another round trip. The index by which expired rows are found prevents a \
         heap-only update of a claim to a record; the row about an index compares both sides with it."
            .to_owned(),
    );
}

/// "1 caller", or the plural.
pub fn of_callers(callers: usize) -> String {
    if callers == 1 { "1 caller".to_owned() } else { format!("{callers} callers") }
}

async fn run(pool: &PgPool, sql: &str) {
    sqlx::query(AssertSqlSafe(sql.to_owned())).execute(pool).await.expect("the statement runs");
}

fn first_of(store: &PostgresStore, callers: usize) -> Side {
    let store = store.clone();
    let ours = work(move |number| {
        let store = store.clone();
        async move { execute(&store, number).await }
    });
    Side::new(callers, ours)
}

fn replay_of(store: &PostgresStore, callers: usize) -> Side {
    let store = store.clone();
    let ours = work(move |number| {
        let store = store.clone();
        async move { replay(&store, usize::MAX - number % RECORDED).await }
    });
    Side::new(callers, ours)
}

fn bare_first(pool: &PgPool, callers: usize) -> Side {
    let pool = pool.clone();
    let bare = work(move |number| {
        let pool = pool.clone();
        async move { write(&pool, number).await }
    });
    Side::new(callers, bare)
}

fn bare_replay(pool: &PgPool, callers: usize) -> Side {
    let (pool, digests) = (pool.clone(), (0..RECORDED).map(|number| digest(usize::MAX - number)).collect::<Arc<[_]>>());
    let bare = work(move |number| {
        let (pool, digests) = (pool.clone(), Arc::clone(&digests));
        async move {
            let select = sqlx::query(BARE_SELECT).bind(&digests[number % RECORDED][..]);
            let row = select.fetch_one(&pool).await.expect("the row is there");
            assert!(!row.get::<&[u8], _>("body").is_empty());
        }
    });
    Side::new(callers, bare)
}

/// The two statements of a first execution, without a check for an existing entry.
async fn write(pool: &PgPool, number: usize) {
    let (digest, key) = (digest(number), record_key(number));
    let token = format!("{number:032x}");
    let insert = sqlx::query(BARE_INSERT).bind(&digest[..]).bind(key.as_str()).bind(FINGERPRINT).bind(&token);
    insert.execute(pool).await.expect("the row is inserted");
    let update = sqlx::query(BARE_UPDATE).bind(&digest[..]).bind(HEADERS).bind(body().to_vec());
    update.execute(pool).await.expect("the row is updated");
}

/// The one statement of a record that had no claim, without a check for an existing entry.
///
/// # Panics
///
/// When the row is not inserted.
pub async fn insert_record(executor: impl PgExecutor<'_>, number: usize) {
    let (digest, key) = (digest(number), record_key(number));
    let token = format!("{number:032x}");
    let insert = sqlx::query(BARE_RECORD).bind(&digest[..]).bind(key.as_str()).bind(FINGERPRINT).bind(&token);
    insert.bind(HEADERS).bind(body().to_vec()).execute(executor).await.expect("the row is inserted");
}

/// As random as a digest, and faster to compute.
fn digest(number: usize) -> [u8; 32] {
    let mut digest = [0; 32];
    let mut state = number as u64;
    for part in digest.chunks_exact_mut(8) {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        part.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    digest
}

/// The statements of a first execution and of a replay, as the server counts them.
async fn statements(pool: &PgPool, store: &PostgresStore) -> (i64, i64) {
    let counted = async || {
        let calls = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements WHERE dbid = \
             (SELECT oid FROM pg_database WHERE datname = current_database()) AND query NOT LIKE '%pg_stat_statements%'";
        sqlx::query_scalar::<_, i64>(calls).fetch_one(pool).await.expect("the extension answers")
    };
    let number = next_number();
    let before = counted().await;
    execute(store, number).await;
    let executed = counted().await;
    replay(store, number).await;
    (executed - before, counted().await - executed)
}
