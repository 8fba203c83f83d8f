//! Creates and upgrades the tables.

use std::fmt;

use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{AssertSqlSafe, Row as _};

use crate::error_text::with_causes;

/// The migrations to the tables that this version reads and writes. Each file makes the next version from the version before it.
const MIGRATIONS: [&str; 4] = [
    include_str!("migrations/1.sql"),
    include_str!("migrations/2.sql"),
    include_str!("migrations/3.sql"),
    include_str!("migrations/4.sql"),
];

/// The name of the schema in the files of the migrations.
const TEMPLATE: &str = "\"idempotency\"";

/// This statement needs the right to create schemas, even if the schema exists.
const CREATE_SCHEMA: &str = "CREATE SCHEMA IF NOT EXISTS \"idempotency\";";

/// Creates or updates the tables. If many processes start at once, one of them migrates, and the others find the new tables.
///
/// No statement has a name, because behind a pooler the name may belong to another client.
pub(super) async fn migrate(pool: &PgPool, schema: &str, lock: i64) -> Result<(), PostgresMigrateError> {
    // This isolation level sees what another process did while this one waited for the lock, whatever the application's default is.
    let mut transaction = pool.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
    let locked = sqlx::query("SELECT pg_advisory_xact_lock($1)").persistent(false).bind(lock);
    locked.execute(&mut *transaction).await?;
    let rights = Rights::of(&mut transaction, schema).await?;
    if let Some(missing) = rights.missing_to_look(schema) {
        return Err(missing);
    }
    let found = if rights.has_version { version(&mut transaction, schema).await? } else { 0 };
    let supported = MIGRATIONS.len();
    if found > supported {
        return Err(PostgresMigrateError::NewerSchema { schema: schema.to_owned(), found, supported });
    }
    if found > 0 && found < supported && !rights.is_owner {
        let remedy = format!(
            "let the role that owns the tables of {schema} call `PostgresStore::migrate`, or run `PostgresStore::sql_since({found})`"
        );
        return Err(rights.missing(remedy));
    }
    for migration in &MIGRATIONS[found..] {
        let migration = if rights.has_schema { migration.replace(CREATE_SCHEMA, "") } else { (*migration).to_owned() };
        let sql = migration.replace(TEMPLATE, schema);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

async fn version(connection: &mut PgConnection, schema: &str) -> Result<usize, PostgresMigrateError> {
    let sql = format!("SELECT version FROM {schema}.schema_version");
    let version = sqlx::query_scalar::<_, i32>(AssertSqlSafe(sql)).persistent(false).fetch_optional(connection).await?;
    version
        .and_then(|version| usize::try_from(version).ok())
        .filter(|&version| version > 0)
        .ok_or_else(|| PostgresMigrateError::NoVersion { schema: schema.to_owned() })
}

/// Which parts of the schema exist, and what this role may do with them.
#[expect(clippy::struct_excessive_bools, reason = "each is a column of its own")]
struct Rights {
    /// Quoted.
    role: String,
    has_schema: bool,
    has_version: bool,
    may_create_schema: bool,
    may_use_schema: bool,
    may_create_tables: bool,
    may_read_version: bool,
    is_owner: bool,
}

/// Reads only the catalogue, which every role may read.
const RIGHTS: &str = "SELECT quote_ident(current_user) AS role, s.oid IS NOT NULL AS has_schema, v.oid IS NOT NULL AS has_version, \
     has_database_privilege(current_database(), 'CREATE') AS may_create_schema, \
     coalesce(has_schema_privilege(s.oid, 'USAGE'), false) AS may_use_schema, \
     coalesce(has_schema_privilege(s.oid, 'CREATE'), false) AS may_create_tables, \
     coalesce(has_table_privilege(v.oid, 'SELECT'), false) AS may_read_version, \
     coalesce(pg_has_role(v.relowner, 'USAGE'), false) AS is_owner \
     FROM (SELECT) AS one LEFT JOIN pg_namespace AS s ON s.nspname = $1 \
     LEFT JOIN pg_class AS v ON v.relnamespace = s.oid AND v.relname = 'schema_version'";

impl Rights {
    async fn of(connection: &mut PgConnection, schema: &str) -> Result<Self, sqlx::Error> {
        let name = schema[1..schema.len() - 1].replace("\"\"", "\"");
        let row = sqlx::query(RIGHTS).persistent(false).bind(name).fetch_one(connection).await?;
        Ok(Self {
            role: row.try_get("role")?,
            has_schema: row.try_get("has_schema")?,
            has_version: row.try_get("has_version")?,
            may_create_schema: row.try_get("may_create_schema")?,
            may_use_schema: row.try_get("may_use_schema")?,
            may_create_tables: row.try_get("may_create_tables")?,
            may_read_version: row.try_get("may_read_version")?,
            is_owner: row.try_get("is_owner")?,
        })
    }

    /// Returns the right that is missing to read the version of the tables, or to create the first version.
    fn missing_to_look(&self, schema: &str) -> Option<PostgresMigrateError> {
        let role = &self.role;
        let remedy = match self {
            Self { has_schema: false, may_create_schema: false, .. } => {
                format!("let an administrator run `CREATE SCHEMA {schema} AUTHORIZATION {role}`")
            }
            Self { has_schema: true, has_version: false, .. } if !(self.may_use_schema && self.may_create_tables) => {
                format!("let its owner run `GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}`")
            }
            Self { has_version: true, may_use_schema: false, .. } => {
                format!("let its owner run `GRANT USAGE ON SCHEMA {schema} TO {role}`")
            }
            Self { has_version: true, may_read_version: false, .. } => {
                format!("let its owner run `GRANT SELECT ON {schema}.schema_version TO {role}`")
            }
            _ => return None,
        };
        Some(self.missing(remedy))
    }

    fn missing(&self, remedy: String) -> PostgresMigrateError {
        PostgresMigrateError::MissingRight { role: self.role.clone(), remedy }
    }
}

/// Why the tables could not be created.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum PostgresMigrateError {
    /// A newer version of this library has created the tables.
    #[error(
        "the schema {schema} has version {found}, this library knows {supported}: update `idempotent-runtime` \
         to the version that made them, or a newer one. Do not use an empty schema instead: every retry would run again"
    )]
    #[non_exhaustive]
    NewerSchema {
        /// The schema, quoted.
        schema: String,
        /// The version of the tables.
        found: usize,
        /// The newest version of the tables that this version of the library supports.
        supported: usize,
    },
    /// The table `schema_version` exists and is empty.
    #[error(
        "the table {schema}.schema_version names no version: restore its row, or drop the schema, which forgets every record"
    )]
    #[non_exhaustive]
    NoVersion {
        /// The schema, quoted.
        schema: String,
    },
    /// The role may not create or read the tables.
    #[error("the role {role} lacks a right on the schema of the store: {remedy}")]
    #[non_exhaustive]
    MissingRight {
        /// The role, quoted where SQL needs it.
        role: String,
        /// What to do, with the exact statement.
        remedy: String,
    },
    /// PostgreSQL rejected a statement, or could not be reached.
    #[error("the tables of the store could not be looked up or created")]
    Failed(#[from] sqlx::Error),
}

/// Returns the SQL of all migrations.
pub(super) fn sql(schema: &str) -> String {
    sql_since(schema, 0)
}

/// Returns the SQL of the migrations after this version.
pub(super) fn sql_since(schema: &str, version: usize) -> String {
    let left = MIGRATIONS.iter().skip(version).map(|migration| migration.replace(TEMPLATE, schema));
    left.collect::<Vec<_>>().join("\n")
}

impl fmt::Debug for PostgresMigrateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_causes(self, f)
    }
}
