//! The renewals of leases, in a small file beside the database.
//!
//! SQLite has one write lock for each file. A handler's `Tx`, many short transactions or another program may hold the
//! lock of the database for longer than a lease. Meanwhile the leases of running handlers must be renewed. So a renewal
//! writes to a separate file, which no transaction of a handler locks. If that file cannot be written, because a
//! program holds its lock or it is lost, a renewal writes to the database.
//!
//! A row of the database has the lease with which its claim began. A row here replaces it, unless the database has more
//! renewals. Each claim has a number ([`new_id`]) by which both rows are matched, because one token may claim twice.
//!
//! Two rules prevent that a handler runs at the same time as another one that took its claim over:
//!
//! 1. Before a claim is taken over, or deleted because it expired, its lease is [fenced](Leases::fence). The fence
//!    fails if the lease was renewed meanwhile. After the fence, no renewal succeeds.
//! 2. A renewal reads the row of the database while it holds the write lock of this file. So it finds either the fence,
//!    or the writes that were made under the fence.
//!
//! Locks are always taken in one order: database, then leases. A holder of the first lock waits only a moment for the
//! second one, because a renewal may need the first lock.
//!
//! The database identifies its file of leases by the name inside the file and by the number of the file in the file
//! system: [`Leases::current`]. If there is another file at its path, or none, the writer [makes a new
//! one](Leases::repair), and all claims count as renewed. The other processes then use the new file.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::deadline::Deadline;
use crate::store::claim::Renewal;
use crate::store::columns::{span_millis, token_text};
use crate::store::error::StoreError;
use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::connections::{Acquired, Connections};
use crate::store::sqlite::database_file::inode;
use crate::store::sqlite::failure::{Cause, store_error};
use crate::store::sqlite::leases_file;
use crate::store::sqlite::leases_schema as schema;
use crate::store::sqlite::watch::{ClaimId, Watch};
use crate::sync::{Mutex, lock};

/// The number of connections for in-flight duplicates and operators. Each has a thread in sqlx.
const LOOKING: usize = 2;

/// The time that a statement waits for the lock of this file. Renewals hold it for less.
const LOCK_WAIT: Duration = Duration::from_millis(50);

/// The time that one try of a renewal waits for the lock. It is short, because a renewal tries again and a short lease
/// allows no more.
const RENEWAL_LOCK_WAIT: Duration = Duration::from_millis(10);

/// The longest time that a renewal waits for its turn before it goes to the database.
const LONGEST_TURN: Duration = Duration::from_secs(1);

/// The renewals as an argument of a statement on the database: a JSON list of rows, with the columns of the macro
/// `renewals` in `leases_schema`.
pub(super) type Renewals = String;

/// Returns an empty list of renewals.
pub(super) fn none() -> Renewals {
    "[]".to_owned()
}

/// The content of this file for one claim.
pub(super) struct Renewed {
    pub(super) list: Renewals,
    pub(super) renewals: i64,
    /// Whether the claim can no longer be renewed.
    pub(super) is_over: bool,
}

/// Creates the number of a claim, which no other claim has.
pub(super) fn new_id() -> i64 {
    RandomState::new().hash_one(0_u8).cast_signed()
}

#[derive(Debug, thiserror::Error)]
#[error("the file of leases beside the database was deleted or replaced, and a new one is not made yet")]
struct Lost;

#[derive(Debug, thiserror::Error)]
#[error("an earlier renewal has not ended, and has the connection to the file of leases")]
struct InUse;

/// Returns whether the writer must create a new file of leases.
pub(super) fn is_lost(error: &StoreError) -> bool {
    error.is_busy_with::<Lost>()
}

pub(super) struct Leases {
    path: PathBuf,
    database: String,
    options: SqliteConnectOptions,
    renewing: Connections,
    /// The connections for callers that hold the lock of the database, or that may wait.
    writing: Connections,
    /// The connections for reads. They are separate, so that a renewal does not wait for many reads.
    looking: Connections,
    clock: Clock,
    watch: Watch,
    /// The number of the file when it was the current one.
    inode: AtomicI64,
    /// The time at which a fence found the file locked.
    locked_at: Mutex<Option<Instant>>,
    is_reported: AtomicBool,
    busy_timeout: Duration,
}

impl Leases {
    pub(super) fn new(options: SqliteConnectOptions, database: &str, clock: Clock, busy_timeout: Duration) -> Self {
        let connections = |options: &SqliteConnectOptions, most| {
            Connections::new(options.clone(), most).attaching(database.to_owned())
        };
        let waiting = |wait| options.clone().busy_timeout(wait);
        Self {
            path: leases_file::path(database).into(),
            database: database.to_owned(),
            renewing: connections(&waiting(RENEWAL_LOCK_WAIT), 1),
            writing: connections(&waiting(LOCK_WAIT), 1),
            looking: connections(&options, LOOKING),
            options,
            clock,
            watch: Watch::default(),
            inode: AtomicI64::new(-1),
            locked_at: Mutex::default(),
            is_reported: AtomicBool::new(false),
            busy_timeout,
        }
    }

    /// Opens the connection that renews.
    pub(super) async fn connect(&self) -> Result<(), StoreError> {
        let start = Instant::now();
        loop {
            match self.current(&self.renewing).await {
                Err(error) if error.is_busy() && !is_lost(&error) && start.elapsed() < self.busy_timeout => {}
                current => return current.map(Acquired::give_back),
            }
        }
    }

    /// Renews those of these claims that their tokens hold. Returns the tokens of the renewed claims.
    pub(super) async fn renew(&self, renewals: &[Renewal]) -> Result<HashSet<String>, StoreError> {
        let list: Vec<_> = renewals
            .iter()
            .map(|renewal| (renewal.key.as_str(), token_text(renewal.token), span_millis(renewal.lease)))
            .collect();
        let list = serde_json::to_string(&list).map_err(StoreError::unavailable)?;
        // The rest of the lease is for a renewal in the database. If the last renewal had to go there, this one does
        // not wait here.
        let shortest = renewals.iter().map(|renewal| renewal.lease).filter(|lease| !lease.is_zero()).min();
        let wait = shortest.map_or(LOCK_WAIT, |lease| lease / 12).min(self.busy_timeout);
        let wait = if self.is_reported.load(Ordering::Relaxed) { Duration::ZERO } else { wait };
        // Many callers take turns, each for a moment.
        let turn = shortest.map_or(LONGEST_TURN, |lease| lease / 6).min(LONGEST_TURN);
        let start = Instant::now();
        let renewed = loop {
            match self.try_renew(&list, turn).await {
                Err(error) if error.is_busy() && !is_lost(&error) && start.elapsed() < wait => {}
                renewed => break renewed,
            }
        };
        let failed = renewed.as_ref().err();
        if self.is_reported.swap(failed.is_some(), Ordering::Relaxed) == failed.is_some() {
            return renewed;
        }
        if let Some(error) = failed {
            tracing::warn!(
                path = %self.path.display(),
                error = error as &dyn std::error::Error,
                "the file of leases cannot be written: leases are renewed in the database"
            );
        } else {
            tracing::info!(path = %self.path.display(), "the file of leases can be written again");
        }
        renewed
    }

    async fn try_renew(&self, list: &str, turn: Duration) -> Result<HashSet<String>, StoreError> {
        // The runtime of an earlier renewal may be paused while that renewal has the connection.
        let acquiring = Deadline::after(turn).bound(self.current(&self.renewing)).await;
        let mut acquired = acquiring.unwrap_or_else(|| Err(StoreError::unavailable(InUse)))?;
        let renewed = sqlx::query_scalar(schema::RENEW).bind(self.clock.now()).bind(self.clock.id()).bind(list);
        let renewed: Vec<String> = renewed.fetch_all(acquired.connection()).await.map_err(store_error)?;
        // If another file has replaced this one meanwhile, the renewal has no effect.
        if !self.is_current(acquired.connection()).await? {
            return Err(StoreError::busy(Lost));
        }
        acquired.give_back();
        Ok(renewed.into_iter().collect())
    }

    /// Ends the leases of these claims, except those that were renewed after they were read. Returns the numbers of the
    /// ended leases, which can no longer be renewed. The caller must hold the lock of the database.
    pub(super) async fn fence(&self, claims: &[ClaimId]) -> Result<HashSet<i64>, StoreError> {
        self.end(claims, true).await
    }

    /// Does the same as [`fence`](Self::fence), but the leases can be renewed afterwards. Processes with any clock then
    /// see that the leases are over.
    pub(super) async fn lapse(&self, claims: &[ClaimId]) -> Result<HashSet<i64>, StoreError> {
        self.end(claims, false).await
    }

    async fn end(&self, claims: &[ClaimId], is_over: bool) -> Result<HashSet<i64>, StoreError> {
        // The fences of one batch must not wait for the lock one after the other.
        if lock(&self.locked_at).is_some_and(|at| at.elapsed() < LOCK_WAIT) {
            return Err(StoreError::busy("the file of leases is locked by another program"));
        }
        let list = serde_json::to_string(claims).map_err(StoreError::unavailable)?;
        let mut acquired = self.current(&self.writing).await?;
        let ended = sqlx::query_scalar(schema::END).bind(is_over).bind(list).fetch_all(acquired.connection()).await;
        let ended: Vec<i64> = ended.map_err(|error| {
            if Cause::of(&error) == Cause::Locked {
                *lock(&self.locked_at) = Some(Instant::now());
            }
            store_error(error)
        })?;
        acquired.give_back();
        Ok(ended.into_iter().collect())
    }

    /// Returns whether the lease of a claim that another clock wrote has ended. If so, processes with any clock see
    /// that it is over.
    pub(super) async fn has_ended(&self, claim: ClaimId, lease: Duration) -> Result<bool, StoreError> {
        Ok(self.watch.has_ended(&claim, lease) && !self.lapse(&[claim]).await?.is_empty())
    }

    /// Reads all claims of other clocks.
    pub(super) async fn watch(&self) -> Result<(), StoreError> {
        let mut look = self.look().await?;
        let rows = sqlx::query(schema::OF_OTHER_CLOCKS).bind(self.clock.id()).fetch_all(look.connection());
        let rows = rows.await.map_err(store_error)?;
        look.give_back();
        let claims: Vec<_> = rows
            .iter()
            .map(|row| {
                let claim = ClaimId { lease: row.get(0), record: row.get(1), renewals: row.get(2) };
                (claim, Duration::from_millis(row.get::<i64, _>(3).unsigned_abs()))
            })
            .collect();
        let ended: Vec<_> = claims
            .iter()
            .filter(|(claim, lease)| self.watch.has_ended(claim, *lease))
            .map(|(claim, _)| *claim)
            .collect();
        self.watch.retain(&claims.iter().map(|(claim, _)| *claim).collect::<Vec<_>>());
        if !ended.is_empty() {
            self.lapse(&ended).await?;
        }
        Ok(())
    }

    /// Returns a connection on which the database is `records` and this file is `main`.
    pub(super) async fn look(&self) -> Result<Acquired<'_>, StoreError> {
        self.current(&self.looking).await
    }

    /// Returns the content of this file for the claim with this number.
    pub(super) async fn of(&self, id: i64) -> Result<Option<Renewed>, StoreError> {
        let mut acquired = self.look().await?;
        let row = sqlx::query(schema::ONE).bind(id).fetch_optional(acquired.connection()).await.map_err(store_error)?;
        acquired.give_back();
        Ok(row.map(|row| Renewed { list: row.get(0), renewals: row.get(1), is_over: row.get(2) }))
    }

    /// Returns the renewals of all claims.
    pub(super) async fn all(&self) -> Result<Renewals, StoreError> {
        let mut acquired = self.look().await?;
        let all = sqlx::query_scalar(schema::ALL).fetch_one(acquired.connection()).await.map_err(store_error)?;
        acquired.give_back();
        Ok(all)
    }

    /// Deletes renewals that no claim needs any more.
    pub(super) async fn delete_expired(&self) -> Result<(), StoreError> {
        let mut acquired = self.current(&self.writing).await?;
        let deletion = sqlx::query(schema::DELETE_EXPIRED).bind(self.clock.now()).execute(acquired.connection());
        deletion.await.map_err(store_error)?;
        acquired.give_back();
        Ok(())
    }

    /// Returns whether there is another file at the path, or none.
    pub(super) fn is_lost(&self) -> bool {
        inode(&self.path) != Some(self.inode.load(Ordering::Relaxed))
    }

    /// Makes a new file, unless another process has done so. The caller must hold the lock of the database.
    pub(super) async fn repair(&self, database: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        leases_file::settle(database, &self.database, self.options.clone(), self.clock).await
    }

    pub(super) async fn close(&self) {
        for connections in [&self.looking, &self.writing, &self.renewing] {
            connections.close().await;
        }
    }

    /// Returns a connection to the file that the database names.
    async fn current<'a>(&self, connections: &'a Connections) -> Result<Acquired<'a>, StoreError> {
        for _ in 0..2 {
            let mut acquired = connections.acquire().await.map_err(|error| self.or_lost(error))?;
            if self.is_current(acquired.connection()).await? {
                return Ok(acquired);
            }
            // The idle connections may have an older file open too.
            drop(acquired);
            connections.close().await;
        }
        Err(StoreError::busy(Lost))
    }

    async fn is_current(&self, connection: &mut SqliteConnection) -> Result<bool, StoreError> {
        let row = sqlx::query(schema::IS_CURRENT).fetch_one(connection).await;
        let row = row.map_err(|error| self.or_lost(store_error(error)))?;
        let known: i64 = row.get(1);
        let is_current = row.get(0) && inode(&self.path) == Some(known);
        if is_current {
            self.inode.store(known, Ordering::Relaxed);
        }
        Ok(is_current)
    }

    /// Converts an error. The file at the path may be no file of leases at all.
    fn or_lost(&self, error: StoreError) -> StoreError {
        if self.is_lost() { StoreError::busy(Lost) } else { error }
    }
}
