//! Creates the file of leases, and registers it in the database.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};

use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::database_file::inode;
use crate::store::sqlite::leases_schema;
use crate::store::sqlite::schema;

/// Returns the path of the database in the form in which SQLite names the files beside it: without symbolic links.
pub(super) async fn path_of_database(database: &mut SqliteConnection) -> Result<String, sqlx::Error> {
    sqlx::query_scalar("SELECT file FROM pragma_database_list WHERE name = 'main'").fetch_one(database).await
}

/// Returns the path of the leases of a database.
pub(super) fn path(database: &str) -> String {
    format!("{database}-leases")
}

/// Creates the file if there is none, and registers it. The caller must hold the write lock of the database.
///
/// A claim whose renewals are lost counts as renewed now, because its handler may run.
pub(super) async fn settle(
    database: &mut SqliteConnection,
    of_database: &str,
    options: SqliteConnectOptions,
    clock: Clock,
) -> Result<(), sqlx::Error> {
    let path = path(of_database);
    create_like(of_database, &path);
    let mut leases = options.create_if_missing(true).connect().await?;
    leases.execute("PRAGMA journal_mode = WAL").await?;
    leases.execute("BEGIN IMMEDIATE").await?;
    leases.execute(sqlx::raw_sql(leases_schema::CREATE)).await?;
    leases.execute(leases_schema::TOUCH).await?;
    let name: String = sqlx::query_scalar(leases_schema::NAME).fetch_one(&mut leases).await?;
    let inode = inode(Path::new(&path)).unwrap_or_default();
    let known: Option<(String, i64)> = sqlx::query_as(schema::LEASES_FILE).fetch_optional(&mut *database).await?;
    if known != Some((name, inode)) {
        // The file may be an older one that was put here. Its leases are out of date.
        leases.execute(leases_schema::DELETE_ALL).await?;
        let name: String = sqlx::query_scalar(leases_schema::RENAME).fetch_one(&mut leases).await?;
        sqlx::query(schema::SET_LEASES_FILE).bind(name).bind(inode).execute(&mut *database).await?;
        sqlx::query(schema::RENEW_ALL).bind(clock.now()).execute(database).await?;
    }
    leases.execute("COMMIT").await?;
    leases.close().await
}

/// Creates the file before SQLite does, so that only users who can read the database can read it.
#[cfg(unix)]
pub(super) fn create_like(database: &str, path: &str) {
    use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};

    let (database, path) = (Path::new(database), Path::new(path));
    let Ok(of_database) = std::fs::metadata(database) else { return };
    // An existing file is not opened: closing it would release the locks of all connections on it.
    let created = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    // If the file cannot be created, SQLite reports the reason.
    let Ok(file) = created else { return };
    // Only root may give a file to another user. Other users may give it to one of their groups, so that the owner of
    // the database can open it.
    if fchown(&file, Some(of_database.uid()), Some(of_database.gid())).is_err() {
        let _ = fchown(&file, None, Some(of_database.gid()));
    }
    let _ = file.set_permissions(of_database.permissions());
}

#[cfg(not(unix))]
pub(super) fn create_like(_: &str, _: &str) {}
