//! Makes the file of leases, and makes it known to the database.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};

use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::leases;
use crate::store::sqlite::schema;

/// The path of the database as SQLite itself names the files beside it: without symbolic links.
pub(super) async fn path_of_database(database: &mut SqliteConnection) -> Result<String, sqlx::Error> {
    sqlx::query_scalar("SELECT file FROM pragma_database_list WHERE name = 'main'").fetch_one(database).await
}

/// Where the leases of a database are.
pub(super) fn path(database: &str) -> String {
    format!("{database}-leases")
}

/// The name of the file, which is made where there is none; the caller holds the write lock of the database.
pub(super) async fn open(options: SqliteConnectOptions) -> Result<String, sqlx::Error> {
    let mut leases = options.create_if_missing(true).connect().await?;
    leases.execute("PRAGMA journal_mode = WAL").await?;
    leases.execute("BEGIN IMMEDIATE").await?;
    leases.execute(sqlx::raw_sql(leases::CREATE)).await?;
    // On a file that cannot be written, all of this succeeds where it changes nothing.
    leases.execute("UPDATE idempotency_leases_file SET name = name").await?;
    leases.execute("COMMIT").await?;
    let name = sqlx::query_scalar("SELECT name FROM idempotency_leases_file").fetch_one(&mut leases).await?;
    leases.close().await?;
    Ok(name)
}

/// A claim whose renewals are lost counts as renewed now: its handler may run.
pub(super) async fn adopt(
    database: &mut SqliteConnection,
    options: SqliteConnectOptions,
    clock: Clock,
    name: &str,
) -> Result<(), sqlx::Error> {
    let known: Option<String> = sqlx::query_scalar(schema::LEASES_FILE).fetch_optional(&mut *database).await?;
    if known.as_deref() == Some(name) {
        return Ok(());
    }
    sqlx::query(schema::SET_LEASES_FILE).bind(name).execute(&mut *database).await?;
    if known.is_some() {
        // An older file may have been put here: what it says of leases is out of date.
        let mut leases = options.connect().await?;
        leases.execute("DELETE FROM idempotency_leases").await?;
        leases.close().await?;
        schema::at(clock.now(), schema::RENEW_ALL).execute(database).await?;
    }
    Ok(())
}

/// Creates the file before SQLite does, so that only those who can read the database can read it.
#[cfg(unix)]
pub(super) fn create_like(database: &str, path: &str) {
    use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};

    let (database, path) = (Path::new(database), Path::new(path));
    let Ok(of_database) = std::fs::metadata(database) else { return };
    // Never opens a file that is there: closing it again would take away the locks of every connection on it.
    let created = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    // Where it cannot be made, SQLite tells why.
    let Ok(file) = created else { return };
    // Only root may give a file away. Others may give it to a group of theirs, so that the owner of the database can open it.
    if fchown(&file, Some(of_database.uid()), Some(of_database.gid())).is_err() {
        let _ = fchown(&file, None, Some(of_database.gid()));
    }
    let _ = file.set_permissions(of_database.permissions());
}

#[cfg(not(unix))]
pub(super) fn create_like(_: &str, _: &str) {}
