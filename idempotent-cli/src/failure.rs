//! What goes wrong, and the exit status that it has.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use idempotent_runtime::store::{RedisOpenError, SqliteOpenError, StoreError};

use crate::address::MalformedAddress;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(
        "no store is named: write `--store URL`, or set IDEMPOTENT_STORE to `sqlite://PATH`, `redis://HOST:PORT` or `postgres://USER@HOST/DATABASE`"
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
    #[error("nothing was purged: there is no terminal to ask on, so confirm with `--yes`")]
    NotAsked,
    #[error("nothing was purged: only the answer `yes` confirms")]
    NotConfirmed,
    #[error("nothing was purged: the entry has changed meanwhile; look at it again")]
    Changed,
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::NothingThere | Self::NoSuchId(_) => 1,
            Self::NoStore | Self::Address(_) | Self::ForAnotherStore { .. } | Self::Schema(_) | Self::Id(_) => 2,
            Self::NotAsked | Self::NotConfirmed | Self::Changed => 4,
            _ => 3,
        })
    }

    /// With the causes, which may say what the server says. A cause that only repeats the message before it is left out.
    pub(crate) fn explained(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let reason = error.to_string();
            if !text.ends_with(&reason) {
                text = format!("{text}\n  because: {reason}");
            }
            cause = error.source();
        }
        idempotent_runtime::operate::visible(&text).replace(r"\u{a}", "\n")
    }
}
