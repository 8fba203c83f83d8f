//! What the handlers have done, in a database that outlives the servers: one row for each execution, and one for each
//! effect.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, Row as _, SqliteConnection};

use crate::history::{Execution, Fault, FaultKind, History};
use crate::now;

const SCHEMA: &str = "
CREATE TABLE executions (
    id TEXT PRIMARY KEY,
    key TEXT NOT NULL,
    server TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    begun_at INTEGER NOT NULL,
    ended_at INTEGER,
    gave_up INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX executions_key ON executions (key);
CREATE TABLE effects (key TEXT NOT NULL, execution TEXT NOT NULL);
CREATE TABLE ended_runtimes (name TEXT NOT NULL, begun_at INTEGER NOT NULL, ended_at INTEGER NOT NULL);
";

const EFFECTS: &str = "CREATE TABLE IF NOT EXISTS effects (key TEXT NOT NULL, execution TEXT NOT NULL)";

/// Triggers that end a transaction while its handler runs.
const TRAPS: &str = "
CREATE TABLE bulk (bytes BLOB NOT NULL);
CREATE TABLE traps (id INTEGER PRIMARY KEY ON CONFLICT ROLLBACK);
INSERT INTO traps VALUES (1);
CREATE TRIGGER trap BEFORE UPDATE ON traps BEGIN SELECT RAISE(ROLLBACK, 'the trap is sprung'); END;
";

const SELECT: &str = "SELECT key, execution FROM effects";

/// How long a writer waits for another one that is stopped by a signal.
const BUSY: Duration = Duration::from_mins(1);

/// The ledger of a run.
#[derive(Clone)]
pub struct Ledger(SqlitePool);

fn options(path: &Path) -> SqliteConnectOptions {
    // Only processes die here, not the machine: written data survives without synchronisation.
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(BUSY);
    options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Off)
}

/// Creates the table of effects that transactions write, in the store's own database.
pub(super) async fn create_effects(store: &str) -> anyhow::Result<()> {
    if let Some(path) = store.strip_prefix("sqlite:") {
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let mut connection = SqliteConnection::connect_with(&options.journal_mode(SqliteJournalMode::Wal)).await?;
        sqlx::query(EFFECTS).execute(&mut connection).await?;
        sqlx::raw_sql(TRAPS).execute(&mut connection).await?;
        connection.close().await?;
    } else if store.starts_with("postgres:") {
        let mut connection = PgConnection::connect(store).await?;
        sqlx::query(EFFECTS).execute(&mut connection).await?;
        connection.close().await?;
    }
    Ok(())
}

impl Ledger {
    pub(super) async fn create(path: &Path) -> anyhow::Result<()> {
        let mut connection = SqliteConnection::connect_with(&options(path).create_if_missing(true)).await?;
        sqlx::raw_sql(SCHEMA).execute(&mut connection).await.context("the ledger's tables")?;
        connection.close().await?;
        Ok(())
    }

    /// Opens the ledger that was created for the run.
    ///
    /// # Errors
    ///
    /// When the ledger does not exist.
    pub async fn open(path: &Path) -> anyhow::Result<Self> {
        let pool = SqlitePoolOptions::new().max_connections(8).acquire_timeout(BUSY).connect_with(options(path)).await;
        Ok(Self(pool.context("the ledger")?))
    }

    /// Records that an execution begins. Returns how many executions its key has now.
    ///
    /// # Panics
    ///
    /// If the ledger fails, as all methods here: without its ledger, a run proves nothing.
    pub(super) async fn begin(&self, execution: &Execution) -> i64 {
        let mut connection = self.0.acquire().await.expect("the ledger is there");
        sqlx::query("INSERT INTO executions (id, key, server, attempt, begun_at) VALUES (?, ?, ?, ?, ?)")
            .bind(&execution.id)
            .bind(&execution.key)
            .bind(&execution.server)
            .bind(execution.attempt)
            .bind(micros(execution.begun_at))
            .execute(&mut *connection)
            .await
            .expect("the execution is written down");
        sqlx::query_scalar("SELECT count(*) FROM executions WHERE key = ?")
            .bind(&execution.key)
            .fetch_one(&mut *connection)
            .await
            .expect("the executions are counted")
    }

    pub(super) async fn give_up(&self, execution: &str) {
        let gave_up = sqlx::query("UPDATE executions SET gave_up = 1 WHERE id = ?").bind(execution).execute(&self.0);
        gave_up.await.expect("the end is written down");
    }

    /// Records the end. If an execution ends several times, the first end counts.
    pub(super) async fn end(&self, execution: &str) {
        let ended = sqlx::query("UPDATE executions SET ended_at = ? WHERE id = ? AND ended_at IS NULL")
            .bind(micros(now()))
            .bind(execution);
        ended.execute(&self.0).await.expect("the end is written down");
    }

    pub(super) async fn runtime_ended(&self, name: &str, begun_at: u64) {
        let ended = sqlx::query("INSERT INTO ended_runtimes (name, begun_at, ended_at) VALUES (?, ?, ?)").bind(name);
        let ended = ended.bind(micros(begun_at)).bind(micros(now())).execute(&self.0);
        ended.await.expect("the end is written down");
    }

    pub(super) async fn effect(&self, key: &str, execution: &str) {
        let effect = sqlx::query("INSERT INTO effects (key, execution) VALUES (?, ?)").bind(key).bind(execution);
        effect.execute(&self.0).await.expect("the effect is written down");
    }

    /// Adds the contents of the ledger, and the effects in the store's own database, to the history.
    ///
    /// # Errors
    ///
    /// When one of them cannot be read.
    pub async fn tell(&self, history: &mut History, store: &str) -> anyhow::Result<()> {
        let executions = sqlx::query("SELECT * FROM executions");
        for row in executions.fetch_all(&self.0).await? {
            history.executions.push(Execution {
                id: row.get("id"),
                key: row.get("key"),
                server: row.get("server"),
                attempt: row.get("attempt"),
                begun_at: row.get::<i64, _>("begun_at").unsigned_abs(),
                ended_at: row.get::<Option<i64>, _>("ended_at").map(i64::unsigned_abs),
                gave_up: row.get("gave_up"),
            });
        }
        for row in sqlx::query("SELECT * FROM ended_runtimes").fetch_all(&self.0).await? {
            let time = |column| row.get::<i64, _>(column).unsigned_abs();
            history.faults.push(Fault {
                time: (time("begun_at"), time("ended_at")),
                server: Some(row.get("name")),
                kind: FaultKind::RuntimeEnded,
            });
        }
        history.effects.extend(sqlx::query_as(SELECT).fetch_all(&self.0).await?);
        if let Some(path) = store.strip_prefix("sqlite:") {
            let options = SqliteConnectOptions::new().filename(path).busy_timeout(BUSY);
            let mut connection = SqliteConnection::connect_with(&options).await?;
            history.effects.extend(sqlx::query_as(SELECT).fetch_all(&mut connection).await?);
        } else if store.starts_with("postgres:") {
            let mut connection = PgConnection::connect(store).await?;
            history.effects.extend(sqlx::query_as(SELECT).fetch_all(&mut connection).await?);
        }
        Ok(())
    }
}

/// An execution that begins now.
pub(super) fn beginning(id: String, key: &str, server: &str, attempt: u32) -> Execution {
    let (key, server) = (key.to_owned(), server.to_owned());
    Execution { id, key, server, attempt, begun_at: now(), ended_at: None, gave_up: false }
}

fn micros(time: u64) -> i64 {
    i64::try_from(time).expect("the time fits")
}
