//! The real stores, each of a run's own.

use std::path::Path;

use clap::ValueEnum;
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// Of one process, which dies with it: not for runs in which processes die.
    #[value(skip)]
    Memory,
    /// One file.
    Sqlite,
    /// One server, with an append-only file.
    Redis,
    /// One server.
    Postgres,
}

impl StoreKind {
    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Sqlite => "sqlite",
            Self::Redis => "redis",
            Self::Postgres => "postgres",
        }
    }
}

/// A store that can be paused and killed.
pub struct TestedStore {
    url: String,
    server: Server,
}

enum Server {
    /// It lives in the processes that use it.
    Embedded,
    Redis(RedisServer),
    Postgres(PostgresServer),
}

impl TestedStore {
    pub(crate) async fn start(kind: StoreKind, folder: &Path) -> Self {
        match kind {
            StoreKind::Memory => Self { url: "memory:".to_owned(), server: Server::Embedded },
            StoreKind::Sqlite => {
                let url = format!("sqlite:{}", folder.join("records.db").display());
                Self { url, server: Server::Embedded }
            }
            StoreKind::Redis => {
                let server = RedisServer::start(&[]).await;
                Self { url: server.url(), server: Server::Redis(server) }
            }
            StoreKind::Postgres => {
                let server = PostgresServer::start(&[]).await;
                let url = server.database().await.url();
                Self { url, server: Server::Postgres(server) }
            }
        }
    }

    /// As the servers take it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether it has a process of its own.
    pub(crate) fn is_served(&self) -> bool {
        !matches!(self.server, Server::Embedded)
    }

    pub(crate) fn signal(&self, signal: &str) {
        match &self.server {
            Server::Embedded => {}
            Server::Redis(server) => server.signal(signal),
            Server::Postgres(server) => server.signal(signal),
        }
    }

    pub(crate) async fn restart(&self) {
        match &self.server {
            Server::Embedded => {}
            Server::Redis(server) => server.restart().await,
            Server::Postgres(server) => server.restart().await,
        }
    }
}
