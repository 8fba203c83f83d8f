//! The real stores, each of a run's own.

use std::path::Path;

use clap::ValueEnum;
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Mode, Proxy};

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
    line: Option<Line>,
}

/// Between the servers and the store.
struct Line {
    proxy: Proxy,
    url: String,
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
            StoreKind::Memory => Self { url: "memory:".to_owned(), server: Server::Embedded, line: None },
            StoreKind::Sqlite => {
                let url = format!("sqlite:{}", folder.join("records.db").display());
                Self { url, server: Server::Embedded, line: None }
            }
            StoreKind::Redis => {
                let server = RedisServer::start(&[]).await;
                let proxy = Proxy::to(server.address()).await;
                let line = Some(Line { url: format!("redis://{}/", proxy.address()), proxy });
                Self { url: server.url(), server: Server::Redis(server), line }
            }
            StoreKind::Postgres => {
                let server = PostgresServer::start(&[]).await;
                let database = server.database().await;
                let proxy = database.proxy();
                let line = Some(Line { url: database.url_over(&proxy), proxy });
                Self { url: database.url(), server: Server::Postgres(server), line }
            }
        }
    }

    /// Where it is, past the line.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// As the servers take it.
    pub(crate) fn url_of_servers(&self) -> &str {
        self.line.as_ref().map_or(&self.url, |line| &line.url)
    }

    /// What the line does from now on, where there is one.
    pub(crate) fn set_line(&self, mode: Mode) {
        if let Some(line) = &self.line {
            line.proxy.set(mode);
        }
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
