//! Where the stores keep their records: servers and a folder of this measurement's own.

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

/// They end with this value.
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
    /// When there is no place for files beside this program.
    ///
    /// # Panics
    ///
    /// When one of the two is not installed; the message names the package.
    pub fn open() -> anyhow::Result<Self> {
        let runtime = Runtime::new()?;
        // Where the temporary folder may be in memory, that of this program hardly ever is.
        let program = env::current_exe()?;
        let beside = program.parent().context("this program lies in no folder")?;
        let folder = tempfile::Builder::new().prefix("loopback").tempdir_in(beside)?;
        // A rewrite of the log takes a core from the measured process.
        let redis = runtime.block_on(RedisServer::start(&["--auto-aof-rewrite-percentage 0"]));
        let postgres = runtime.block_on(PostgresServer::start(&["fsync=on", "synchronous_commit=on"]));
        Ok(Self { runtime, folder, redis, postgres })
    }

    /// Starts a server whose store is empty. What another one has left with the same engine is gone from then on.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
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

    /// The engines and where they write, as a paragraph.
    ///
    /// # Errors
    ///
    /// When PostgreSQL does not tell its version.
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

/// What a folder lies on.
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
