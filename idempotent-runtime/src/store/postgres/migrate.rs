//! Creates and upgrades the tables.

use std::fmt;

use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnection, PgPool};

use crate::error_text::with_causes;

/// What this version reads and writes, and how it comes about: each file makes one version of the one before.
const MIGRATIONS: [&str; 2] = [include_str!("migrations/1.sql"), include_str!("migrations/2.sql")];

/// The schema's name in those files.
const TEMPLATE: &str = "\"idempotency\"";

/// Safe when many processes start at once: one of them migrates, and the others find it done.
pub(super) async fn migrate(pool: &PgPool, schema: &str, lock: i64) -> Result<(), PostgresMigrateError> {
    // Whatever the application's default is: what another process has done while we waited for the lock must be seen.
    let mut transaction = pool.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(lock).execute(&mut *transaction).await?;
    let found = version(&mut transaction, schema).await?;
    let supported = MIGRATIONS.len();
    if found > supported {
        return Err(PostgresMigrateError::NewerSchema { schema: schema.to_owned(), found, supported });
    }
    for migration in &MIGRATIONS[found..] {
        let sql = migration.replace(TEMPLATE, schema);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

/// 0 where nothing is yet.
async fn version(connection: &mut PgConnection, schema: &str) -> Result<usize, PostgresMigrateError> {
    let table = format!("{schema}.schema_version");
    let exists: bool =
        sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(&table).fetch_one(&mut *connection).await?;
    if !exists {
        return Ok(0);
    }
    let version = sqlx::query_scalar::<_, i32>(AssertSqlSafe(format!("SELECT version FROM {table}")));
    let version = version.fetch_optional(connection).await?;
    version
        .and_then(|version| usize::try_from(version).ok())
        .filter(|&version| version > 0)
        .ok_or_else(|| PostgresMigrateError::NoVersion { schema: schema.to_owned() })
}

/// Why the tables could not be created.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum PostgresMigrateError {
    /// A newer version of this library has made them.
    #[error(
        "the schema {schema} has version {found}, this library knows {supported}: update `idempotent-runtime` \
         to the version that made them, or a newer one. Do not use an empty schema instead: every retry would run again"
    )]
    #[non_exhaustive]
    NewerSchema {
        /// The schema, quoted.
        schema: String,
        /// What it has.
        found: usize,
        /// The newest that this version of the library knows.
        supported: usize,
    },
    /// The table of versions exists and is empty.
    #[error(
        "the table {schema}.schema_version names no version: restore its row, or drop the schema, which forgets every record"
    )]
    #[non_exhaustive]
    NoVersion {
        /// The schema, quoted.
        schema: String,
    },
    /// PostgreSQL rejected a statement, or could not be reached.
    #[error(
        "the tables of the store could not be looked up or created. If the cause is a missing right, let a role run the SQL of \
         `PostgresStore::sql` that may create a schema, and grant this role SELECT on all of them"
    )]
    Failed(#[from] sqlx::Error),
}

/// The SQL of all migrations.
pub(super) fn sql(schema: &str) -> String {
    MIGRATIONS.map(|migration| migration.replace(TEMPLATE, schema)).join("\n")
}

impl fmt::Debug for PostgresMigrateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_causes(self, f)
    }
}
