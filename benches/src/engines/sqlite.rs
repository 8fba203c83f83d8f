//! SQLite: group commit, compared with one `fsync` for each write and with a batch that is written by hand.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use idempotent_runtime::store::{self, SqliteStore};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Executor as _};
use tempfile::TempDir;
use tokio::sync::Mutex;

use super::contest::{Effort, Outcome, Side, contest, next_number, work};
use super::sample::{body, execute, record_key, replay};
use crate::report::{Section, Table, figure, median};

const CALLERS: usize = 64;

/// Keys whose records are replayed.
const RECORDED: usize = 1_000;

/// The columns that a claim and its record fill, without the other parts of the store's table.
const BARE_TABLE: &str = "CREATE TABLE bare (key TEXT PRIMARY KEY, state TEXT NOT NULL, fingerprint TEXT NOT NULL, \
     token TEXT NOT NULL, attempt INTEGER NOT NULL, claim_ttl INTEGER NOT NULL, lease_until INTEGER, \
     expires_at INTEGER NOT NULL, recorded_at INTEGER, status INTEGER, headers TEXT, body BLOB) STRICT";

const BARE_INSERT: &str = "INSERT INTO bare (key, state, fingerprint, token, attempt, claim_ttl, lease_until, \
     expires_at) VALUES (?1, 'claimed', ?2, ?3, 1, 86400000, 1750000030000, 1750086400000)";

const BARE_UPDATE: &str = "UPDATE bare SET state = 'completed', lease_until = NULL, expires_at = 1750086400001, \
     recorded_at = 1750000000123, status = 201, headers = ?2, body = ?3 WHERE key = ?1";

const BARE_SELECT: &str = "SELECT state, fingerprint, token, attempt, status, headers, body FROM bare WHERE key = ?1";

const FINGERPRINT: &str = "0707070707070707070707070707070707070707070707070707070707070707";

const HEADERS: &str = r#"[["content-type","application/json"],["location","/charges/ch_3MmlLrLkdIwHu7ix0snN0B15"]]"#;

/// Measures first executions and replays.
///
/// # Panics
///
/// When the disk fails.
pub async fn measure(section: &mut Section, effort: Effort) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = SqliteStore::open(folder.path().join("store.db")).await.expect("the store opens");
    assert_eq!(store.synchronous(), store::SqliteSynchronous::Full);
    let single = table(&folder, "single.db").await;
    let batch = table(&folder, "batch.db").await;

    let ours = first_of(&store);
    let over_single = contest("SQLite, against a commit a write", effort, &ours, &one_by_one(single)).await;
    let over_batch = contest("SQLite, against a batch by hand", effort, &ours, &by_hand(batch)).await;
    let readers = tables(&folder, "batch.db", &store).await;
    let replayed = contest("SQLite, replay", effort, &replay_of(&store), &bare_replay(readers)).await;

    let mut table = Table::new(
        &format!("SQLite, `synchronous = FULL`: operations per second, {CALLERS} concurrent callers"),
        &["", "SqliteStore", "by hand", "ratio"],
    );
    let mut row = |what: &str, Outcome { ours, bare, ratio }: &Outcome| {
        table.row([what.into(), figure(*ours, ""), figure(*bare, ""), figure(*ratio, "")]);
    };
    row("first execution, against an `INSERT` and an `UPDATE` that commit alone", &over_single);
    row("first execution, against 64 `INSERT`s in one transaction and 64 `UPDATE`s in another", &over_batch);
    row("replay, against `SELECT` over four connections", &replayed);
    section.tables.push(table);
    section.at_least("SQLite: first executions, of one commit a write", 20.0, over_single.ratio, "×");
    section.at_least("SQLite: first executions, of a batch by hand", 0.8, over_batch.ratio, "×");
    let version: String = sqlx::query_scalar("SELECT sqlite_version()")
        .fetch_one(&mut connect(&folder.path().join("batch.db")).await)
        .await
        .expect("it has a version");
    section.text.push(format!(
        "Both sides use SQLite {version} through sqlx, in files on the machine's disk, where `fdatasync` of one page takes {}. \
         *By hand* is one connection that gets 64 rows at once and has prepared its statements. Its table has the same \
         columns, and no index except its primary key. The store gets its writes from {CALLERS} independent callers.",
        figure(sync_millis(folder.path()), "ms"),
    ));
    section.text.push(format!(
        "The disk decides how much faster a batch is than one commit for each write: in this run the batch by hand was {} as \
         fast. Without sqlx's thread (the same statements from Python's `sqlite3`, 64 in a commit) it was 16 × as fast.",
        figure(over_batch.bare / over_single.bare, "×"),
    ));
}

async fn connect(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
    options.disable_statement_logging().connect().await.expect("the file opens")
}

async fn table(folder: &TempDir, name: &str) -> SqliteConnection {
    let mut connection = connect(&folder.path().join(name)).await;
    connection.execute(BARE_TABLE).await.expect("the table is made");
    connection
}

fn first_of(store: &SqliteStore) -> Side {
    let store = store.clone();
    let ours = work(move |number| {
        let store = store.clone();
        async move { execute(&store, number).await }
    });
    Side::new(CALLERS, ours)
}

fn one_by_one(connection: SqliteConnection) -> Side {
    let connection = Arc::new(Mutex::new(connection));
    let bare = work(move |number| {
        let connection = Arc::clone(&connection);
        async move {
            insert(&mut *connection.lock().await, number).await;
            update(&mut *connection.lock().await, number).await;
        }
    });
    Side::new(CALLERS, bare)
}

fn by_hand(connection: SqliteConnection) -> Side {
    let connection = Arc::new(Mutex::new(connection));
    let bare = work(move |_| {
        let connection = Arc::clone(&connection);
        async move {
            let mut connection = connection.lock().await;
            let numbers: Vec<usize> = (0..CALLERS).map(|_| next_number()).collect();
            execute_sql(&mut connection, "BEGIN IMMEDIATE").await;
            for &number in &numbers {
                insert(&mut connection, number).await;
            }
            execute_sql(&mut connection, "COMMIT").await;
            execute_sql(&mut connection, "BEGIN IMMEDIATE").await;
            for &number in &numbers {
                update(&mut connection, number).await;
            }
            execute_sql(&mut connection, "COMMIT").await;
        }
    });
    Side::new(1, bare).in_batches_of(CALLERS)
}

async fn execute_sql(connection: &mut SqliteConnection, sql: &'static str) {
    sqlx::query(sql).execute(connection).await.expect("the disk works");
}

async fn insert(connection: &mut SqliteConnection, number: usize) {
    let key = record_key(number);
    let insert = sqlx::query(BARE_INSERT).bind(key.as_str()).bind(FINGERPRINT).bind(format!("{number:032x}"));
    insert.execute(connection).await.expect("the row is inserted");
}

async fn update(connection: &mut SqliteConnection, number: usize) {
    let key = record_key(number);
    let update = sqlx::query(BARE_UPDATE).bind(key.as_str()).bind(HEADERS).bind(&body()[..]);
    let updated = update.execute(connection).await.expect("the row is updated");
    assert_eq!(updated.rows_affected(), 1);
}

/// The same records on both sides, and as many readers as the store has.
async fn tables(folder: &TempDir, name: &str, store: &SqliteStore) -> Vec<Mutex<SqliteConnection>> {
    let mut readers = Vec::new();
    for _ in 0..4 {
        readers.push(Mutex::new(connect(&folder.path().join(name)).await));
    }
    let writer = readers[0].get_mut();
    execute_sql(writer, "BEGIN IMMEDIATE").await;
    for number in 0..RECORDED {
        insert(&mut *writer, usize::MAX - number).await;
        update(&mut *writer, usize::MAX - number).await;
    }
    execute_sql(writer, "COMMIT").await;
    futures_util::future::join_all((0..RECORDED).map(|number| execute(store, usize::MAX - number))).await;
    readers
}

fn replay_of(store: &SqliteStore) -> Side {
    let store = store.clone();
    let ours = work(move |number| {
        let store = store.clone();
        async move { replay(&store, usize::MAX - number % RECORDED).await }
    });
    Side::new(CALLERS, ours)
}

fn bare_replay(readers: Vec<Mutex<SqliteConnection>>) -> Side {
    let readers = Arc::new(readers);
    let bare = work(move |number| {
        let readers = Arc::clone(&readers);
        async move {
            let key = record_key(usize::MAX - number % RECORDED);
            let mut reader = readers[number % readers.len()].lock().await;
            let select = sqlx::query(BARE_SELECT).bind(key.as_str());
            select.fetch_one(&mut *reader).await.expect("the row is there");
        }
    });
    Side::new(CALLERS, bare)
}

/// How long the disk takes to write one page durably.
fn sync_millis(folder: &Path) -> f64 {
    use std::io::{Seek, SeekFrom, Write};

    let mut file = std::fs::File::create(folder.join("page")).expect("the folder can be written");
    let times = (0..100).map(|_| {
        file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&[7; 4096])).expect("the disk has room");
        let begun = Instant::now();
        file.sync_data().expect("the disk works");
        begun.elapsed().as_secs_f64() * 1_000.0
    });
    median(times.collect())
}
