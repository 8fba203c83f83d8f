//! `--store`: where the idempotency records and the ledger are kept.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use charges::api::Transactions;
use charges::ledger::Ledger;
use charges::sqlite;
use idempotent_runtime::Registry;
use idempotent_runtime::store::{MemoryStore, PostgresStore, RedisStore, SqliteStore};
use sqlx::postgres::PgPoolOptions;

/// The store of the records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreOption {
    Memory,
    Sqlite(PathBuf),
    Redis(String),
    Postgres(String),
}

impl FromStr for StoreOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "memory" => Ok(Self::Memory),
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            Some(("redis", rest)) if rest.starts_with("//") => Ok(Self::Redis(text.to_owned())),
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => Ok(Self::Postgres(text.to_owned())),
            _ => {
                Err("write `memory`, `sqlite:PATH`, `redis://HOST:PORT` or `postgres://USER@HOST/DATABASE`".to_owned())
            }
        }
    }
}

/// An open store, with its registry and the ledger.
pub(crate) struct Opened {
    pub(crate) registry: Registry,
    pub(crate) ledger: Ledger,
    pub(crate) transactions: Transactions,
}

impl StoreOption {
    /// Opens the store and the ledger. If the store's database has transactions, the ledger is in it, so that both
    /// commit together. Otherwise the ledger is in a file in the folder `data`.
    pub(crate) async fn open(&self, data: &Path) -> anyhow::Result<Opened> {
        let file = data.join("ledger.db");
        let opened = match self {
            Self::Memory => Opened {
                registry: Registry::new(MemoryStore::new()),
                ledger: Ledger::Sqlite(sqlite::open(&file).await?),
                transactions: Transactions::None,
            },
            Self::Redis(url) => Opened {
                registry: Registry::new(RedisStore::connect(url).await?),
                ledger: Ledger::Sqlite(sqlite::open(&file).await?),
                transactions: Transactions::None,
            },
            Self::Sqlite(path) => Opened {
                // Charges run one after another, and each waits for the card network. So requests may queue for a
                // while.
                registry: Registry::builder(SqliteStore::open(path).await?)
                    .store_timeout(Duration::from_secs(10))
                    .build(),
                ledger: Ledger::Sqlite(sqlite::open(path).await?),
                transactions: Transactions::Sqlite,
            },
            Self::Postgres(url) => {
                let pool = PgPoolOptions::new().max_connections(20).connect(url).await;
                let pool = pool.context("PostgreSQL cannot be reached")?;
                let store = PostgresStore::new(pool.clone());
                store.migrate().await?;
                Opened {
                    registry: Registry::new(store),
                    ledger: Ledger::Postgres(pool),
                    transactions: Transactions::Postgres,
                }
            }
        };
        opened.ledger.migrate().await.context("the ledger's tables cannot be made")?;
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_store_is_named_by_its_scheme() {
        for (text, store) in [
            ("memory", StoreOption::Memory),
            ("sqlite:a/b.db", StoreOption::Sqlite("a/b.db".into())),
            ("sqlite:/a:b.db", StoreOption::Sqlite("/a:b.db".into())),
            ("redis://h:1/", StoreOption::Redis("redis://h:1/".to_owned())),
            ("postgres://u@h/d", StoreOption::Postgres("postgres://u@h/d".to_owned())),
            ("postgresql:///d", StoreOption::Postgres("postgresql:///d".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(store));
        }
    }

    #[test]
    fn anything_else_is_told_what_to_write() {
        for text in [
            "",
            "memory:",
            "Memory",
            "sqlite",
            "sqlite:",
            "postgres",
            "postgres:x",
            "redis:h",
            "mysql://h/d",
            "ledger.db",
        ] {
            let error = text.parse::<StoreOption>().expect_err(text);
            assert!(error.contains("`sqlite:PATH`"), "{error}");
        }
    }
}
