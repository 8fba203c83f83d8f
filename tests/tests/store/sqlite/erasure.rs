//! The files of the SQLite store have nothing of a row that was deleted, while the store stays open.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::time::Duration;

use idempotent_runtime::RecordKey;
use idempotent_runtime::store::{Held, SqliteStore, Store as _, StoreAdmin as _};
use idempotent_tests::eventually;
use idempotent_tests::sqlite::{SqliteFile, acquire, claim_request, record, record_key};
use sqlx::{Connection as _, Executor as _};

const HOUR: Duration = Duration::from_hours(1);

/// The files of a store. They stay open, because closing a database file releases all locks that this process has on it.
struct Content<'a> {
    file: &'a SqliteFile,
    databases: [File; 2],
}

impl<'a> Content<'a> {
    fn of(file: &'a SqliteFile) -> Self {
        let databases = [file.path(), file.leases()].map(|path| File::open(path).expect("the store is open"));
        Self { file, databases }
    }

    fn has(&self, text: &str) -> bool {
        let mut contents: Vec<Vec<u8>> = Vec::new();
        for mut database in &self.databases {
            let mut bytes = Vec::new();
            database.rewind().expect("the file can be read");
            database.read_to_end(&mut bytes).expect("the file can be read");
            contents.push(bytes);
        }
        let mut log_of_leases = self.file.leases().into_os_string();
        log_of_leases.push("-wal");
        contents.push(fs::read(self.file.log()).expect("the store is open"));
        contents.push(fs::read(log_of_leases).expect("the store is open"));
        contents.iter().any(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
    }

    async fn loses(&self, texts: &[&str]) {
        let left = async || texts.iter().filter(|text| self.has(text)).copied().collect::<Vec<_>>();
        eventually(left, Vec::is_empty).await;
    }
}

/// Records a small response and one of 100 KiB, which needs pages of its own.
async fn record_both(store: &SqliteStore, ttl: Duration) -> [RecordKey; 2] {
    let keys = ["secret-key-small", "secret-key-large"].map(record_key);
    let bodies = ["secret-body-small".to_owned(), "secret-body-large".repeat(6_024)];
    for (key, body) in keys.iter().zip(bodies) {
        let token = acquire(store, key).await;
        let recorded = store.complete(key, token, record(body), ttl).await;
        assert_eq!(recorded.expect("the store answers"), Held::Yes);
    }
    keys
}

const SECRETS: [&str; 2] = ["secret-key", "secret-body"];

async fn open(file: &SqliteFile) -> SqliteStore {
    SqliteStore::builder(file.path()).delete_expired_every(Duration::from_millis(20)).open().await.expect("it opens")
}

#[tokio::test]
async fn purged_key_and_response_are_not_in_the_files() {
    let file = SqliteFile::new();
    let store = open(&file).await;
    let content = Content::of(&file);
    let keys = record_both(&store, HOUR).await;
    assert!(content.has("secret-key") && content.has("secret-body"), "before the purge");

    for key in keys {
        assert!(store.purge(&key).await.unwrap());
    }

    content.loses(&SECRETS).await;
    drop(store);
    file.closed().await;
}

#[tokio::test]
async fn expired_key_and_response_are_not_in_the_files() {
    let file = SqliteFile::new();
    let store = open(&file).await;
    let content = Content::of(&file);

    record_both(&store, Duration::from_millis(1)).await;

    content.loses(&SECRETS).await;
    drop(store);
    file.closed().await;
}

#[tokio::test]
async fn released_key_is_not_in_the_files() {
    let file = SqliteFile::new();
    let store = open(&file).await;
    let content = Content::of(&file);
    let key = record_key("secret-key");
    let token = acquire(&store, &key).await;
    assert_eq!(store.renew(&key, token, HOUR).await.unwrap(), Held::Yes);
    assert!(content.has("secret-key"), "before the release");

    assert_eq!(store.release(&key, token).await.unwrap(), Held::Yes);

    content.loses(&["secret-key"]).await;
    drop(store);
    file.closed().await;
}

/// The new claim overwrites the row, so the store's own deletion finds nothing.
#[tokio::test]
async fn overwritten_response_is_not_in_the_files() {
    let file = SqliteFile::new();
    let interval = Duration::from_millis(500);
    let store = SqliteStore::builder(file.path()).delete_expired_every(interval).open().await.unwrap();
    let content = Content::of(&file);
    let keys = record_both(&store, Duration::ZERO).await;

    for key in keys {
        acquire(&store, &key).await;
    }

    content.loses(&["secret-body"]).await;
    drop(store);
    file.closed().await;
}

/// If the purge waited for the reader, it would wait for an hour.
#[tokio::test]
async fn purge_waits_for_no_reader_and_truncates_after_it() {
    let file = SqliteFile::new();
    let builder = SqliteStore::builder(file.path()).busy_timeout(HOUR);
    let store = builder.delete_expired_every(Duration::from_millis(20)).open().await.unwrap();
    let content = Content::of(&file);
    let keys = record_both(&store, HOUR).await;
    let mut reader = file.connect().await;
    reader.execute("BEGIN").await.unwrap();
    reader.execute("SELECT count(*) FROM idempotency_records").await.unwrap();

    for key in keys {
        assert!(store.purge(&key).await.unwrap());
    }
    assert!(content.has("secret-key"), "the reader can still read it");
    acquire(&store, &record_key("other")).await;

    reader.close().await.unwrap();
    content.loses(&SECRETS).await;
    drop(store);
    file.closed().await;
}

#[tokio::test]
async fn log_is_not_truncated_if_nothing_was_deleted() {
    let file = SqliteFile::new();
    let store = SqliteStore::builder(file.path()).delete_expired_every(Duration::from_millis(1)).open().await.unwrap();
    acquire(&store, &record_key("k")).await;
    let commits = file.commits();

    for number in 0..100 {
        assert!(!store.purge(&record_key(&format!("unknown {number}"))).await.unwrap());
    }

    assert!(file.commits() >= commits, "the log is as it was");
    assert!(store.claim(&record_key("k"), claim_request()).await.is_ok());
}
