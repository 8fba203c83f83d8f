//! The databases of the stores: servers and a folder for this measurement only.

use std::env;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::redis::RedisServer;
use sqlx::Connection as _;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::server::{Contender, Server};

/// The servers and the folder, which are removed when this is dropped.
pub struct Places {
    runtime: Runtime,
    folder: TempDir,
    redis: RedisServer,
    postgres: PostgresServer,
}

impl Places {
    /// Starts Redis and PostgreSQL.
    ///
    /// # Errors
    ///
    /// When no folder can be made beside this program.
    ///
    /// # Panics
    ///
    /// When Redis or PostgreSQL is not installed. The message names the package.
    pub fn open() -> anyhow::Result<Self> {
        let runtime = Runtime::new()?;
        // The temporary folder may be in memory. The folder of this program hardly ever is.
        let program = env::current_exe()?;
        let beside = program.parent().context("this program lies in no folder")?;
        let folder = tempfile::Builder::new().prefix("loopback").tempdir_in(beside)?;
        // A rewrite of the append-only file would take a core from the measured process.
        let redis = runtime.block_on(RedisServer::start(&["--auto-aof-rewrite-percentage 0"]));
        let postgres = runtime.block_on(PostgresServer::start(&["fsync=on", "synchronous_commit=on"]));
        Ok(Self { runtime, folder, redis, postgres })
    }

    /// Starts a server with an empty store. This removes what another server has left in the same database.
    ///
    /// # Errors
    ///
    /// The same as those of [`Server::start`].
    pub fn serve(&self, contender: Contender) -> anyhow::Result<Server> {
        let place = match contender {
            Contender::Bare | Contender::ByHand | Contender::Memory => None,
            Contender::Sqlite => {
                let folder = tempfile::tempdir_in(self.folder.path())?.keep();
                Some(folder.join("idempotency.db").display().to_string())
            }
            Contender::Redis | Contender::NearRedis => {
                let _: () = self.runtime.block_on(self.redis.command("FLUSHALL"));
                Some(self.redis.url())
            }
            Contender::Postgres | Contender::NearPostgres => {
                Some(self.runtime.block_on(self.postgres.database()).url())
            }
        };
        Server::start(contender, place.as_deref())
    }

    /// A paragraph about the databases and where they write.
    ///
    /// # Errors
    ///
    /// When PostgreSQL does not report its version.
    pub fn description(&self) -> anyhow::Result<String> {
        let redis: String = self.runtime.block_on(self.redis.command("INFO server"));
        let redis = redis.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or_default().trim();
        let postgres = self.runtime.block_on(postgres_version(&self.postgres))?;
        Ok(format!(
            "Every store is a new one for each retry rate, with the defaults of the library. SQLite writes with `synchronous = \
             FULL` to {}; Redis {redis} has its log on, which it syncs once a second, on {}; PostgreSQL {postgres} has `fsync` \
             and `synchronous_commit` on, and writes to {}.",
            disk(self.folder.path()),
            disk(self.redis.folder()),
            disk(self.postgres.folder()),
        ))
    }
}

async fn postgres_version(server: &PostgresServer) -> sqlx::Result<String> {
    let mut connection = server.connect("postgres").await;
    let version = sqlx::query_scalar("SHOW server_version").fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(version)
}

/// The disk of a folder.
fn disk(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        Some((fields.next()?, fields.next()?, fields.next()?))
    });
    let holding = mounts.filter(|(_, point, _)| folder.starts_with(point)).max_by_key(|(_, point, _)| point.len());
    holding.map_or_else(|| "an unknown disk".to_owned(), |(device, _, kind)| format!("`{device}` ({kind})"))
}
