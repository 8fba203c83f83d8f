//! The errors of the program, and their exit statuses.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use idempotent_runtime::MalformedSealingKey;
use idempotent_runtime::operate::{InvalidSettlement, visible};
use idempotent_runtime::store::{RedisOpenError, SqliteOpenError, StoreError};

use crate::address::MalformedAddress;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(
        "no store is named: write `--store URL`, or set IDEMPOTENT_STORE to `sqlite://PATH`, `rediss://HOST:PORT`, `rediss+sentinel://HOST:PORT/SERVICE` or `postgres://USER@HOST/DATABASE`"
    )]
    NoStore,
    #[error("`--store`: {0}")]
    Address(#[from] MalformedAddress),
    #[error("`{option}` is for {of}, and this store is {address}: leave it out")]
    ForAnotherStore { option: &'static str, of: &'static str, address: String },
    #[error("`--schema {0}` is no name of a schema: PostgreSQL takes 1 to 63 bytes without NUL")]
    Schema(String),
    #[error("`--id {0}` is no id: write the 32 hexadecimal digits that a listing shows")]
    Id(String),

    #[error("there is no file `{0}`: name the file that the application's SqliteStore has opened")]
    NoFile(PathBuf),
    #[error(
        "`{0}` is a database without the store's tables: name the file that the application's SqliteStore has opened"
    )]
    NoTablesInFile(PathBuf),
    #[error(transparent)]
    Sqlite(#[from] SqliteOpenError),
    #[error(transparent)]
    Redis(#[from] RedisOpenError),
    #[error("{0} is part of a Redis Cluster, and holds a part of the keys: add `--cluster` to see all of them")]
    PartOfCluster(String),
    #[error("{0} is not part of a Redis Cluster: leave `--cluster` out")]
    NoCluster(String),
    #[error(
        "{address} cannot be reached: see that the URL names the right server, user and database, and that it runs"
    )]
    Postgres { address: String, source: sqlx::Error },
    #[error("{address} cannot be reached by this URL")]
    PostgresUrl { address: String, source: Box<dyn Error + Send + Sync> },
    #[error(
        "{address} has no tables of the store in schema `{schema}`: name the application's database, and its schema with `--schema`"
    )]
    NoTables { address: String, schema: String },
    #[error("{address} has not answered within {seconds} s: see that the URL names the right server, and that it runs")]
    Silent { address: String, seconds: u64 },
    #[error("{address} has failed")]
    Store { address: String, source: StoreError },

    #[error(
        "no entry has this scope, caller and key: the key was never used, was released, has expired, or was purged"
    )]
    NothingThere,
    #[error("no entry of this store has the id {0}")]
    NoSuchId(String),
    #[error("nothing was {done}: there is no terminal to ask on, so confirm with `--yes`")]
    NoTerminal { done: &'static str },
    #[error("nothing was {done}: only the answer `yes` confirms")]
    NotConfirmed { done: &'static str },
    #[error("nothing was purged: the entry has changed meanwhile; look at it again")]
    Changed,

    #[error("`--status {0}` is no status: write the one that retries get, such as 201")]
    Status(u16),
    #[error("`--header {0}` is no header: write `--header 'NAME: VALUE'`")]
    Header(String),
    #[error("`--body @{path}` cannot be read")]
    Body { path: String, source: std::io::Error },
    #[error(
        "say whether the registry seals its records: set IDEMPOTENT_SEALING_KEY or `--sealing-key-file FILE` if it is built with `seal_with`, and write `--unsealed` if it is not. Without the key, the response would be readable in the store"
    )]
    Unsealed,
    #[error("the file of the key `{path}` cannot be read")]
    SecretFile { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Secret(MalformedSealingKey),
    #[error("nothing was resolved: {0}")]
    Settlement(#[from] InvalidSettlement),
    #[error("nothing was resolved: the entry cannot be read, so it can only be purged")]
    NotResolvable,
    #[error("nothing was resolved: the audit log `{path}` cannot be written")]
    Audit { path: PathBuf, source: std::io::Error },
    #[error("nothing was resolved: the audit cannot be written")]
    Untold(#[source] std::io::Error),
    #[error("the key is resolved, but the audit could not be written: note by hand what you have resolved")]
    DoneUntold(#[source] std::io::Error),
    #[error("nothing was resolved: the lease of the claim has not expired, so its handler may run")]
    StillRunning,
    #[error("nothing was resolved: the claim was resolved, completed or taken over meanwhile; look at it again")]
    ChangedHands,
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::NothingThere | Self::NoSuchId(_) => 1,
            Self::NoTerminal { .. }
            | Self::NotConfirmed { .. }
            | Self::Changed
            | Self::StillRunning
            | Self::ChangedHands
            | Self::NotResolvable
            | Self::Settlement(InvalidSettlement::IsRecord) => 4,
            Self::NoStore
            | Self::Address(_)
            | Self::ForAnotherStore { .. }
            | Self::Schema(_)
            | Self::Id(_)
            | Self::Status(_)
            | Self::Header(_)
            | Self::Body { .. }
            | Self::Unsealed
            | Self::SecretFile { .. }
            | Self::Secret(_)
            | Self::Settlement(_) => 2,
            _ => 3,
        })
    }

    /// Returns the message with its causes, which may contain text of the server. A cause that only repeats the message
    /// before it is omitted.
    pub(crate) fn explained(&self) -> String {
        let mut text = visible(&self.to_string());
        let mut cause = self.source();
        while let Some(error) = cause {
            let reason = visible(&error.to_string());
            if !text.ends_with(&reason) {
                text = format!("{text}\n  because: {reason}");
            }
            cause = error.source();
        }
        text
    }
}
