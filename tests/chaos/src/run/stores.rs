//! The real stores, started for one run.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Mode, Proxy, Tmpfs, eventually};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::task::spawn_blocking;

use crate::LEASE;

/// The kind of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// In the memory of one process, and lost with it: not for runs in which processes die.
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
    /// The name on the command line.
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
    disk: Option<Arc<Tmpfs>>,
}

/// The size of the disk in MiB: enough for the records of a run.
const DISK: u32 = 192;

/// The proxy between the servers and the store.
struct Line {
    proxy: Proxy,
    url: String,
}

enum Server {
    /// It runs in the processes that use it.
    Embedded,
    Redis(RedisServer),
    RedisPair(RedisPair),
    Postgres(PostgresServer),
}

/// A master and its replica, which exchange their roles.
struct RedisPair {
    servers: [RedisServer; 2],
    master: AtomicUsize,
}

impl RedisPair {
    async fn start() -> Self {
        // Otherwise, a master waits five seconds for further replicas before the first synchronisation.
        const AT_ONCE: &str = "--repl-diskless-sync-delay 0";

        let servers = [RedisServer::start(&[AT_ONCE]).await, RedisServer::start(&[AT_ONCE]).await];
        // By command and not in the configuration: a master that is started again must not follow its former replica.
        let follow = format!("REPLICAOF {}", servers[0].address().replace(':', " "));
        let _: String = servers[1].command(&follow).await;
        Self { servers, master: AtomicUsize::new(0) }
    }

    fn master(&self) -> &RedisServer {
        &self.servers[self.master.load(Ordering::Relaxed)]
    }

    /// Exchanges the roles in an orderly failover, which loses nothing. The former master keeps its connections.
    async fn change_places(&self) {
        let master = self.master.load(Ordering::Relaxed);
        let (former, next) = (&self.servers[master], &self.servers[1 - master]);
        let fail_over = format!("FAILOVER TO {} TIMEOUT 10000", next.address().replace(':', " "));
        let is_master = async || {
            let replication = next.try_command::<String>("INFO replication").await.unwrap_or_default();
            if replication.contains("master_link_status:up") {
                // Redis rejects it while a failover is in progress, or the replica lags behind.
                let _ = former.try_command::<String>(&fail_over).await;
            }
            replication.contains("role:master")
        };
        eventually(is_master, |&is_master| is_master).await;
        self.master.store(1 - master, Ordering::Relaxed);
    }
}

impl TestedStore {
    pub(crate) async fn start(kind: StoreKind, folder: &Path, on_a_small_disk: bool) -> Self {
        match kind {
            StoreKind::Memory => Self { url: "memory:".to_owned(), server: Server::Embedded, line: None, disk: None },
            StoreKind::Sqlite => {
                let disk = on_a_small_disk.then(|| Arc::new(Tmpfs::mount(DISK)));
                let folder = disk.as_ref().map_or(folder, |disk| disk.path());
                let url = format!("sqlite:{}", folder.join("records.db").display());
                Self { url, server: Server::Embedded, line: None, disk }
            }
            StoreKind::Redis => {
                let server = RedisServer::start(&[]).await;
                let proxy = Proxy::to(server.address()).await;
                let line = Some(Line { url: format!("redis://{}/", proxy.address()), proxy });
                Self { url: server.url(), server: Server::Redis(server), line, disk: None }
            }
            StoreKind::Postgres => Self::start_postgres(&[]).await,
        }
    }

    async fn start_postgres(settings: &[&str]) -> Self {
        let server = PostgresServer::start(settings).await;
        let database = server.database().await;
        let proxy = database.proxy();
        let line = Some(Line { url: database.url_over(&proxy), proxy });
        Self { url: database.url(), server: Server::Postgres(server), line, disk: None }
    }

    /// A store for outages: Redis has a replica, and PostgreSQL ends transactions of clients that are gone.
    pub(crate) async fn start_for_outages(kind: StoreKind, folder: &Path) -> Self {
        match kind {
            StoreKind::Redis => Self::start_redis_pair().await,
            StoreKind::Postgres => Self::start_postgres(&["idle_in_transaction_session_timeout=2s"]).await,
            _ => Self::start(kind, folder, false).await,
        }
    }

    async fn start_redis_pair() -> Self {
        let pair = RedisPair::start().await;
        let proxy = Proxy::to(pair.master().address()).await;
        let line = Some(Line { url: format!("redis://{}/", proxy.address()), proxy });
        Self { url: pair.master().url(), server: Server::RedisPair(pair), line, disk: None }
    }

    /// The URL of the store, without the proxy.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL for the servers.
    pub(crate) fn url_of_servers(&self) -> &str {
        self.line.as_ref().map_or(&self.url, |line| &line.url)
    }

    /// Sets the mode of the proxy, if there is one.
    pub(crate) fn set_line(&self, mode: Mode) {
        if let Some(line) = &self.line {
            line.proxy.set(mode);
        }
    }

    /// Whether the store runs in a separate process.
    pub(crate) fn is_served(&self) -> bool {
        !matches!(self.server, Server::Embedded)
    }

    pub(crate) fn signal(&self, signal: &str) {
        match &self.server {
            Server::Embedded => {}
            Server::Redis(server) => server.signal(signal),
            Server::RedisPair(pair) => pair.master().signal(signal),
            Server::Postgres(server) => server.signal(signal),
        }
    }

    /// Answers nothing for this time.
    pub(crate) async fn be_away(&self, time: Duration) {
        self.signal("STOP");
        let lock = self.lock().await;
        tokio::time::sleep(time).await;
        drop(lock);
        self.signal("CONT");
    }

    /// Takes the writers' lock of an embedded store, which is almost the same as stopping it.
    async fn lock(&self) -> Option<SqliteConnection> {
        let path = self.url.strip_prefix("sqlite:")?;
        let options = SqliteConnectOptions::new().filename(path).busy_timeout(LEASE);
        let mut connection = SqliteConnection::connect_with(&options).await.ok()?;
        sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await.ok()?;
        Some(connection)
    }

    /// Whether the store's disk can be filled.
    pub(crate) fn has_a_small_disk(&self) -> bool {
        self.disk.is_some()
    }

    pub(crate) async fn fill_disk(&self, time: Duration) {
        let Some(disk) = self.disk.clone() else { return };
        let filling = spawn_blocking(move || disk.fill()).await.expect("the disk is filled");
        tokio::time::sleep(time).await;
        drop(filling);
    }

    pub(crate) async fn restart(&self) {
        match &self.server {
            Server::Embedded => {}
            Server::Redis(server) => server.restart().await,
            Server::RedisPair(pair) => pair.master().restart().await,
            Server::Postgres(server) => server.restart().await,
        }
    }

    pub(crate) async fn restart_in_order(&self) {
        match &self.server {
            Server::Embedded => {}
            Server::Redis(server) => server.restart_in_order().await,
            Server::RedisPair(pair) => pair.master().restart_in_order().await,
            Server::Postgres(server) => server.restart_in_order().await,
        }
    }

    /// Makes the replica the master, and leads new connections there, as a virtual address does.
    pub(crate) async fn demote(&self) {
        let (Server::RedisPair(pair), Some(line)) = (&self.server, &self.line) else { return };
        pair.change_places().await;
        line.proxy.lead_to(pair.master().address());
    }

    /// Strands the open connections: they carry nothing any more, and none is closed.
    pub(crate) fn strand(&self) {
        if let Some(line) = &self.line {
            line.proxy.strand();
        }
    }
}
