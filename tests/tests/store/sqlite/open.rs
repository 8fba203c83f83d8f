//! A SQLite store opens on new, shared and existing files, or says why it cannot open.

use std::error::Error as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use idempotent_runtime::store::{Claim, SqliteOpenError, SqliteStore, SqliteSynchronous, Store as _};
#[cfg(target_os = "linux")]
use idempotent_tests::sqlite::{SecondProcess, second_process, tell};
use idempotent_tests::sqlite::{SqliteFile, acquire, claim_request, record_key};
use sqlx::Executor as _;

#[tokio::test]
async fn what_was_answered_is_on_disk_unless_told_otherwise() {
    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.unwrap();
    assert_eq!(store.synchronous(), SqliteSynchronous::Full);
    let store = SqliteStore::builder(file.path()).synchronous(SqliteSynchronous::Normal).open().await.unwrap();
    assert_eq!(store.synchronous(), SqliteSynchronous::Normal);
    assert!(store.path().is_absolute());
}

#[cfg(unix)]
#[tokio::test]
async fn new_files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;

    let file = SqliteFile::new();
    let store = SqliteStore::open(file.path()).await.unwrap();
    acquire(&store, &record_key("k")).await;
    for path in [file.path(), file.leases()] {
        for suffix in ["", "-wal", "-shm"] {
            let path = format!("{}{suffix}", path.display());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{path}");
        }
    }
}

#[tokio::test]
async fn stores_that_start_together_on_a_new_file_all_open() {
    let file = SqliteFile::new();
    let opening = (0..8).map(|_| SqliteStore::open(file.path()));
    let stores = futures_util::future::join_all(opening).await;
    for store in &stores {
        assert!(store.is_ok(), "{store:?}");
    }
}

/// SQLite does not wait for the lock that the change to WAL needs, so the store must wait for it.
#[tokio::test]
async fn a_file_that_another_process_writes_is_waited_for() {
    let file = SqliteFile::new();
    file.execute("CREATE TABLE charges (id INTEGER PRIMARY KEY)").await;
    let mut writer = file.connect().await;
    writer.execute("BEGIN IMMEDIATE").await.unwrap();
    let mut opening = Box::pin(SqliteStore::open(file.path()));

    let too_soon = tokio::time::timeout(Duration::from_millis(50), &mut opening).await;
    assert!(too_soon.is_err(), "it waits: {too_soon:?}");
    writer.execute("COMMIT").await.unwrap();

    assert!(opening.await.is_ok());
}

#[tokio::test]
async fn the_file_may_be_the_applications_own_database() {
    let file = SqliteFile::new();
    file.execute(
        "PRAGMA user_version = 42; CREATE TABLE charges (id INTEGER PRIMARY KEY); INSERT INTO charges VALUES (1)",
    )
    .await;

    let store = SqliteStore::open(file.path()).await.unwrap();
    acquire(&store, &record_key("k")).await;

    assert_eq!(file.number("PRAGMA user_version").await, 42);
    assert_eq!(file.number("SELECT count(*) FROM charges").await, 1);
}

#[tokio::test]
async fn a_newer_schema_is_left_alone() {
    let file = SqliteFile::new();
    drop(SqliteStore::open(file.path()).await.unwrap());
    file.execute("UPDATE idempotency_schema SET version = 7").await;

    let error = SqliteStore::open(file.path()).await.unwrap_err();

    assert!(matches!(error, SqliteOpenError::NewerSchema { found: 7, supported: 2, .. }), "{error:?}");
    says(&error, &[&file.path().display().to_string(), "version 7", "update `idempotent-runtime`"]);
    assert_eq!(file.number("SELECT version FROM idempotency_schema").await, 7);
}

#[tokio::test]
async fn a_schema_without_version_is_damage() {
    let file = SqliteFile::new();
    drop(SqliteStore::open(file.path()).await.unwrap());
    for damage in ["UPDATE idempotency_schema SET version = 0", "DELETE FROM idempotency_schema"] {
        file.execute(damage).await;
        let error = SqliteStore::open(file.path()).await.unwrap_err();
        assert!(matches!(error, SqliteOpenError::Damaged { .. }), "{damage}: {error:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_alone() {
    let file = SqliteFile::new();
    let letter = "Dear reader, this is no database. ".repeat(500);
    fs::write(file.path(), &letter).unwrap();

    let error = SqliteStore::open(file.path()).await.unwrap_err();

    assert!(matches!(error, SqliteOpenError::Damaged { .. }), "{error:?}");
    says(&error, &[&file.path().display().to_string(), "restore it from a backup"]);
    assert!(error.source().unwrap().to_string().contains("file is not a database"));
    assert_eq!(fs::read_to_string(file.path()).unwrap(), letter);
}

#[tokio::test]
async fn a_corrupt_schema_is_damage() {
    let file = SqliteFile::new();
    drop(SqliteStore::open(file.path()).await.unwrap());
    file.closed().await;
    let mut bytes = fs::read(file.path()).unwrap();
    bytes[100..4096].fill(0xee);
    fs::write(file.path(), bytes).unwrap();

    let error = SqliteStore::open(file.path()).await.unwrap_err();

    assert!(matches!(error, SqliteOpenError::Damaged { .. }), "{error:?}");
}

#[tokio::test]
async fn damaged_file_of_leases_may_be_deleted() {
    let file = SqliteFile::new();
    drop(SqliteStore::open(file.path()).await.unwrap());
    file.closed().await;
    fs::write(file.leases(), "Dear reader, this is no database. ".repeat(500)).unwrap();

    let error = SqliteStore::open(file.path()).await.unwrap_err();

    assert!(matches!(error, SqliteOpenError::DamagedLeases { .. }), "{error:?}");
    says(&error, &[&file.leases().display().to_string(), "delete it", "no record is lost"]);
    fs::remove_file(file.leases()).unwrap();
    SqliteStore::open(file.path()).await.unwrap();
}

#[tokio::test]
async fn url_or_name_in_memory_is_no_path() {
    for text in ["sqlite://idempotency.db", "sqlite:idempotency.db", "file:idempotency.db", ":memory:", ""] {
        let error = SqliteStore::open(text).await.unwrap_err();
        assert!(matches!(error, SqliteOpenError::NoPath { .. }), "{error:?}");
        says(&error, &[&format!("`{text}` is no path of a file"), "write the path alone"]);
        assert!(!std::path::Path::new(text).exists());
    }
}

#[tokio::test]
async fn a_missing_folder_is_named() {
    let file = SqliteFile::new();
    let folder = file.path().with_file_name("missing");

    let error = SqliteStore::open(folder.join("idempotency.db")).await.unwrap_err();

    assert!(matches!(error, SqliteOpenError::MissingFolder { .. }), "{error:?}");
    says(&error, &[&format!("`{}` is not a folder: create it", folder.display())]);
    assert!(!folder.exists());
}

#[tokio::test]
async fn a_folder_is_no_file() {
    let folder = SqliteFile::new().path();
    fs::create_dir_all(&folder).unwrap();

    let error = SqliteStore::open(&folder).await.unwrap_err();

    assert!(matches!(error, SqliteOpenError::Folder { .. }), "{error:?}");
    says(&error, &[&format!("such as `{}`", folder.join("idempotency.db").display())]);
    fs::remove_dir_all(folder.parent().unwrap()).unwrap();
}

#[tokio::test]
async fn a_file_that_stays_locked_is_not_waited_for_without_end() {
    let file = SqliteFile::new();
    let mut other = file.connect().await;
    other.execute("BEGIN EXCLUSIVE").await.unwrap();

    let error = SqliteStore::builder(file.path()).busy_timeout(Duration::from_millis(20)).open().await.unwrap_err();

    assert!(matches!(error, SqliteOpenError::Locked { .. }), "{error:?}");
    says(&error, &["stayed locked for 20ms"]);
    other.execute("ROLLBACK").await.unwrap();
    let store = SqliteStore::open(file.path()).await.unwrap();
    assert_eq!(store.claim(&record_key("k"), claim_request()).await.unwrap(), Claim::Acquired { attempt: 1 });
}

/// A process without the rights of root opens the store, because root may write everywhere.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_cannot_be_written_is_said_when_it_is_opened() {
    use std::os::unix::fs::PermissionsExt as _;

    if let Some(path) = second_process() {
        let error = SqliteStore::open(path).await.unwrap_err();
        return tell(&format!("{} {error}", matches!(error, SqliteOpenError::ReadOnly { .. })));
    }
    let file = SqliteFile::new();
    let folder = file.path().parent().unwrap().to_owned();
    drop(SqliteStore::open(file.path()).await.unwrap());
    file.closed().await;
    let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();

    for (folder_mode, file_mode, path) in [
        (0o777, 0o444, file.path()),
        (0o777, 0o000, file.path()),
        (0o555, 0o444, file.path()),
        (0o555, 0o666, file.path()),
        (0o555, 0o666, folder.join("new.db")),
        (0o000, 0o666, file.path()),
    ] {
        set_mode(&file.path(), file_mode);
        set_mode(&folder, folder_mode);
        let mut unprivileged =
            SecondProcess::start_unprivileged(what_cannot_be_written_is_said_when_it_is_opened, &path);
        let told = unprivileged.told();
        set_mode(&folder, 0o777);
        let expected = format!("true `{}` cannot be written", path.display());
        assert!(told.starts_with(&expected), "folder {folder_mode:o}, file {file_mode:o}: {told}");
    }
    // A new file, because the processes above have left files beside the first one.
    let file = SqliteFile::new();
    drop(SqliteStore::open(file.path()).await.unwrap());
    file.closed().await;
    set_mode(file.path().parent().unwrap(), 0o777);
    set_mode(&file.path(), 0o666);
    set_mode(&file.leases(), 0o444);
    let mut unprivileged =
        SecondProcess::start_unprivileged(what_cannot_be_written_is_said_when_it_is_opened, &file.path());
    let told = unprivileged.told();
    assert!(told.starts_with(&format!("true `{}` cannot be written", file.leases().display())), "{told}");
}

fn says(error: &SqliteOpenError, parts: &[&str]) {
    for part in parts {
        assert!(error.to_string().contains(part), "{part:?} is missing in: {error}");
    }
}
