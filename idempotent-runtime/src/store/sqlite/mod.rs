//! The embedded store: one SQLite file that survives a restart.
//!
//! # Why sqlx
//!
//! A program can link `sqlite3` only once. Applications that keep their own data in SQLite mostly use sqlx, and
//! rusqlite beside it would fight over `links = "sqlite3"` at every update of either. And a handler whose own writes
//! shall commit together with its record needs its transaction to be of the type that its own queries take.
//!
//! # How it writes
//!
//! One thread owns the only connection that writes. It takes the write lock (`BEGIN IMMEDIATE`), applies everything
//! that has queued up meanwhile, commits once, and only then answers: a commit costs one `fsync` however many requests
//! share it. The thread has a runtime of its own, so that a store works for every runtime of the process and ends with
//! its last handle. What changes nothing (a replay, a duplicate in flight) is answered by a reader and never waits for
//! the writer.
//!
//! Leases and expiry are judged inside the statements by a clock that all processes on the file have in common and that
//! does not follow when the machine's is set: `clock`.

mod clock;
mod failure;
mod guard;
mod lock_time;
mod open;
mod readers;
mod row;
mod rows;
mod schema;
mod settings;
#[cfg(test)]
mod tests;
mod transactions;
mod writer;
mod writes;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::Sqlite;

use self::clock::Clock;
use self::failure::store_error;
pub use self::open::{OpenError, SqliteStoreBuilder, Synchronous};
use self::readers::Readers;
use self::transactions::HandlerTransactions;
use self::writer::Writer;
use self::writes::{ClaimWrite, CompleteWrite, PurgeWrite, ReleaseWrite, RenewManyWrite, RenewWrite, SweepWrite};
use super::given_back::GivenBackTokens;
use super::line::Call;
use super::row::unknown_outcomes;
use super::standing::{Standing, Verdict, judge};
use super::{
    Claim, ClaimRequest, Cursor, Entry, Held, Page, Renewal, Store, StoreError, Token, Transactions,
    UNKNOWN_OUTCOMES_COUNTED, UnknownOutcomes, each,
};
use crate::{Record, RecordKey};

/// Keeps claims and records in a SQLite file, which may be the application's own database.
///
/// What was answered to a client is on disk first ([`Synchronous::Full`]). Several processes of one machine may share
/// the file; put it on a local disk, since SQLite's write-ahead log does not work over a network.
///
/// Whoever holds the file's write lock for long keeps the others from renewing their leases, so that time does not count for
/// a lease. [`transactions`](crate::guide::transactions) tells what that does not cover.
///
/// On Linux, time goes on evenly for the store from the first opening in each boot of the machine: setting the clock has no
/// effect on leases and expiry until the next boot. On other systems they follow the clock, and one that is set forward by
/// more than a lease lets the request of a running handler be executed again.
///
/// The tables are `idempotency_records`, readable by a person, `idempotency_schema`, `idempotency_clock` and
/// `idempotency_lock_time`. Expired rows are deleted in small batches between the writes, without anyone asking. A clone is cheap
/// and shares everything; the connections
/// close when the last one is dropped.
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// use idempotent_runtime::store::{SqliteStore, Synchronous};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("idempotency.db");
/// let store = SqliteStore::open(&path).await?;
/// assert_eq!(store.synchronous(), Synchronous::Full);
///
/// // Or with options:
/// let store = SqliteStore::builder(&path).max_bytes(1024 * 1024 * 1024).open().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SqliteStore(Arc<Inner>);

struct Inner {
    options: SqliteStoreBuilder,
    /// As SQLite reports it.
    synchronous: Synchronous,
    clock: Clock,
    readers: Arc<Readers>,
    transactions: HandlerTransactions,
    writer: Writer,
    /// Of this process alone: what it sends comes to the file in order, so that no other one can have a claim of theirs.
    given_back: GivenBackTokens,
}

impl SqliteStore {
    /// Opens the file with the default options, and creates it if it is not there.
    ///
    /// # Errors
    ///
    /// [`OpenError`] names the path and what to do.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::builder(path).open().await
    }

    /// A store in this file, with options to follow.
    pub fn builder(path: impl AsRef<Path>) -> SqliteStoreBuilder {
        SqliteStoreBuilder::new(path.as_ref())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.0.options.path()
    }

    /// What the connection that writes waits for before it answers, as SQLite itself reports it.
    pub fn synchronous(&self) -> Synchronous {
        self.0.synchronous
    }

    async fn standing(&self, key: &RecordKey) -> Result<Option<Standing>, StoreError> {
        let mut reader = self.0.readers.acquire().await?;
        let row = schema::at(self.0.clock.now(), schema::STANDING)
            .bind(key.as_str())
            .fetch_optional(reader.connection())
            .await;
        let row = row.map_err(store_error)?;
        reader.give_back();
        row.as_ref().map(Standing::from_row).transpose()
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.path())
            .field("synchronous", &self.synchronous())
            .finish_non_exhaustive()
    }
}

impl Store for SqliteStore {
    async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        // The write would wait for the end of the handler's transaction, which may last longer than a store may take.
        if let Some(fingerprint) = self.0.transactions.running().fingerprint(key) {
            return Ok(Claim::InFlight { fingerprint });
        }
        let call = Call::hold_back();
        if let Verdict::Answer(claim) = judge(self.standing(key).await?, &request) {
            return Ok(claim);
        }
        self.0.given_back.check(request.token)?;
        let max_bytes = self.0.options.bound();
        self.0.writer.submit_held_back(ClaimWrite { key: key.clone(), request, max_bytes }, Some(call)).await
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        self.0.writer.submit(RenewWrite { key: key.clone(), token, lease }).await
    }

    async fn renew_many(&self, renewals: &[Renewal]) -> Vec<Result<Held, StoreError>> {
        let write = RenewManyWrite { renewals: renewals.to_vec() };
        each(renewals.len(), self.0.writer.submit(write).await)
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        self.0.writer.submit(CompleteWrite::new(key.clone(), token, record, ttl)?).await
    }

    async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        let released = self.0.writer.submit(ReleaseWrite { key: key.clone(), token }).await?;
        if released == Held::No {
            self.0.given_back.remember(token);
        }
        Ok(released)
    }

    fn transactions(&self) -> Option<Transactions> {
        Some(Transactions::of::<Sqlite, _>(Arc::new(self.clone())))
    }

    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        let mut reader = self.0.readers.acquire().await?;
        let row =
            schema::at(self.0.clock.now(), schema::ENTRY).bind(key.as_str()).fetch_optional(reader.connection()).await;
        let row = row.map_err(store_error)?;
        reader.give_back();
        row.as_ref().map(Entry::from_row).transpose()
    }

    async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.0.writer.submit(PurgeWrite { key: key.clone() }).await
    }

    async fn sweep(&self) -> Result<usize, StoreError> {
        self.0.writer.submit(SweepWrite).await
    }

    async fn unknown_outcomes(&self) -> Result<UnknownOutcomes, StoreError> {
        let most = i64::try_from(UNKNOWN_OUTCOMES_COUNTED).unwrap_or(i64::MAX);
        let mut reader = self.0.readers.acquire().await?;
        let count = schema::at(self.0.clock.now(), schema::UNKNOWN_OUTCOMES).bind(most);
        let rows = count.fetch_all(reader.connection()).await.map_err(store_error)?;
        reader.give_back();
        unknown_outcomes(&rows)
    }

    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        // One more than asked for tells whether there is a next page.
        let rows = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let Cursor(after) = cursor.unwrap_or_else(|| Cursor(String::new()));
        let mut reader = self.0.readers.acquire().await?;
        let found =
            schema::at(self.0.clock.now(), schema::LIST).bind(&after).bind(rows).fetch_all(reader.connection()).await;
        let found = found.map_err(store_error)?;
        reader.give_back();
        let mut page = Page::default();
        for row in found.iter().take(limit) {
            page.add_row(row)?;
        }
        if found.len() > limit {
            // Also after a row whose key is none.
            let last = found[..limit].last().map(row::place).transpose()?;
            page.next = Some(Cursor(last.unwrap_or(after)));
        }
        Ok(page)
    }
}
