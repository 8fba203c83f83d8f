//! A server process under measurement.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// The bare handler.
    Bare,
    /// A guard that is written by hand.
    ByHand,
    /// The guarded handler, with `MemoryStore`.
    Memory,
    /// The guarded handler, with `SqliteStore`.
    Sqlite,
    /// The guarded handler, with `RedisStore`.
    Redis,
    /// The guarded handler, with `PostgresStore`.
    Postgres,
    /// The guarded handler, with `RedisStore` behind a near cache.
    NearRedis,
    /// The guarded handler, with `PostgresStore` behind a near cache.
    NearPostgres,
}

impl Contender {
    /// The contenders with a store and without a near cache.
    pub const STORES: [Self; 4] = [Self::Memory, Self::Sqlite, Self::Redis, Self::Postgres];

    /// The name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare handler",
            Self::ByHand => "by hand",
            Self::Memory => "memory",
            Self::Sqlite => "SQLite",
            Self::Redis => "Redis",
            Self::Postgres => "PostgreSQL",
            Self::NearRedis => "Redis, near cache",
            Self::NearPostgres => "PostgreSQL, near cache",
        }
    }

    /// The arguments for the program `server`.
    fn argument(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::ByHand => "by-hand",
            Self::Memory => "memory",
            Self::Sqlite => "sqlite",
            Self::Redis => "redis",
            Self::Postgres => "postgres",
            Self::NearRedis => "near-redis",
            Self::NearPostgres => "near-postgres",
        }
    }
}

/// A running server, which ends when this is dropped.
pub struct Server {
    child: Child,
    /// What the server runs.
    pub contender: Contender,
    /// Its port on 127.0.0.1.
    pub port: u16,
}

impl Server {
    /// Starts the server. `place` says where its store keeps the records, if the store needs that.
    ///
    /// # Errors
    ///
    /// When the program is not built, or ends before it listens.
    pub fn start(contender: Contender, place: Option<&str>) -> anyhow::Result<Self> {
        let program = env::current_exe()?.with_file_name("server");
        ensure!(program.is_file(), "{} is not built: build it with `--bin server`", program.display());
        let mut command = Command::new(program);
        command.arg(contender.argument()).args(place).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("the server cannot be started")?;
        let output = child.stdout.take().expect("it is piped");
        // From here on, the server ends when this value is dropped.
        let mut server = Self { child, contender, port: 0 };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let port = line.trim().parse();
        server.port = port.with_context(|| format!("the server with {contender:?} has not told its port"))?;
        Ok(server)
    }

    /// The processor time that the server has used so far.
    ///
    /// # Errors
    ///
    /// When there is no `/proc`.
    pub fn processor_time(&self) -> anyhow::Result<Duration> {
        let path = format!("/proc/{}/stat", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        // The name of the program may contain spaces. In the fields after it, these are `utime` and `stime`.
        let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: Vec<u64> = fields.skip(11).take(2).map(str::parse).collect::<Result<_, _>>().context(path)?;
        // Linux reports hundredths of a second here, whatever the frequency of the kernel's clock.
        Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
