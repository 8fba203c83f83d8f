//! The SQLite store.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::Sqlite;
use tokio::runtime::Handle;

use crate::key::RecordKey;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::claim_decision::{Decision, StoredState, decide};
use crate::store::columns::token_text;
use crate::store::contract::{Store, StoreAdmin};
use crate::store::entry::{Cursor, Entry, Page, UNKNOWN_OUTCOMES_COUNTED, UnknownOutcomes};
use crate::store::error::StoreError;
use crate::store::given_back::RememberedTokens;
use crate::store::line::Call;
use crate::store::resolution::{Resolution, Resolved};
use crate::store::row::each;
use crate::store::row::unknown_outcomes;
use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::connections::Acquired;
use crate::store::sqlite::connections::Connections;
use crate::store::sqlite::database_file::DatabaseFile;
use crate::store::sqlite::failure::{Failure, store_error};
use crate::store::sqlite::handler_transactions::HandlerTransactions;
use crate::store::sqlite::leases;
use crate::store::sqlite::leases::Leases;
use crate::store::sqlite::locked::{Context, look};
use crate::store::sqlite::open::{SqliteStoreBuilder, SqliteSynchronous};
use crate::store::sqlite::resolve::ResolveWrite;
use crate::store::sqlite::schema;
use crate::store::sqlite::writer::Writer;
use crate::store::sqlite::writes::{
    ClaimWrite, CompleteWrite, DeleteExpiredWrite, ExtendWrite, PurgeWrite, ReleaseWrite, RenewWrite, RepairWrite,
};
use crate::transaction::transactions::Transactions;

/// A store that keeps claims and records in a SQLite file, which may be the application's own database.
///
/// A record is on the disk before its response is sent ([`SqliteSynchronous::Full`]). Several processes of one machine can
/// share the file. Put it on a local disk, because SQLite's write-ahead log does not work over a network.
///
/// # Files
///
/// Leases are renewed in a second file, `<path>-leases`. So no transaction keeps another process from renewing, however
/// long it holds the write lock of the first file. The second file has no keys and no records, and needs no backup. If
/// it is deleted or replaced, the store makes a new one, and all leases start again. While another program holds the
/// lock of the second file, leases are renewed in the first file.
///
/// If the first file is moved, deleted or replaced while a process has it open, that process logs an ERROR and rejects
/// requests with 503 until the file is put back or the process is restarted.
///
/// New files can be read and written by their owner only (mode 0600). The mode of an existing file is kept, and the files
/// beside it have the same mode.
///
/// # Clocks
///
/// On Linux, all processes of one boot share one clock: the uptime of the machine, from the first opening in each boot.
/// Changing the system clock has no effect on leases. A process that cannot read the boot's id (in
/// `/proc/sys/kernel/random/boot_id`) has a clock of its own. On other systems, each process has its own clock.
///
/// A process never compares the times of a lease that another clock wrote, for example before a reboot. It takes the
/// claim over when it has seen no renewal for a whole lease since it was opened, or since it first saw the claim. So a
/// retry after a crash can wait for one lease longer.
///
/// The clock of the reading process decides whether a record has expired. Each clock starts with the time of the system
/// clock. If the system clock is an hour ahead when a clock starts, records of other clocks expire an hour early, and a
/// retry in that hour runs the handler again. If it is behind, they expire late.
///
/// # Tables
///
/// The tables are `idempotency_records`, readable by a person, `idempotency_schema`, `idempotency_clocks`,
/// `idempotency_owners` and `idempotency_leases_file`. The store deletes expired rows in small batches between its
/// writes. A clone is cheap and shares everything. The connections close when the last clone is dropped.
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// use idempotent_runtime::store::{SqliteStore, SqliteSynchronous};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("idempotency.db");
/// let store = SqliteStore::open(&path).await?;
/// assert_eq!(store.synchronous(), SqliteSynchronous::Full);
///
/// // Or with options:
/// let store = SqliteStore::builder(&path).max_bytes(1024 * 1024 * 1024).open().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SqliteStore(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) options: SqliteStoreBuilder,
    /// The durability that SQLite reports.
    pub(super) synchronous: SqliteSynchronous,
    pub(super) clock: Clock,
    pub(super) file: Arc<DatabaseFile>,
    pub(super) readers: Arc<Connections>,
    pub(super) leases: Arc<Leases>,
    pub(super) transactions: HandlerTransactions,
    pub(super) writer: Writer,
    /// The tokens that this process has released. Other processes need not know them, because the calls of this process
    /// reach the file in order.
    pub(super) given_back: Arc<RememberedTokens>,
}

impl Inner {
    pub(super) fn context(&self) -> Context<'_> {
        Context { clock: self.clock, leases: &self.leases, file: &self.file }
    }
}

impl SqliteStore {
    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        self.0.options.path()
    }

    /// Returns the durability that the writing connection waits for, as SQLite itself reports it.
    pub fn synchronous(&self) -> SqliteSynchronous {
        self.0.synchronous
    }

    /// Returns the state of the key, with the renewals of its lease. Returns `None` for a claim that has expired by its
    /// row alone, because reading its renewals needs the write lock.
    pub(super) async fn existing(&self, key: &RecordKey) -> Result<Option<StoredState>, StoreError> {
        self.0.file.check()?;
        match self.try_existing(key).await {
            Err(error) if leases::is_lost(&error) => {
                self.0.writer.submit(RepairWrite).await?;
                self.try_existing(key).await
            }
            existing => existing,
        }
    }

    async fn try_existing(&self, key: &RecordKey) -> Result<Option<StoredState>, StoreError> {
        let mut reader = self.0.readers.acquire().await?;
        let row = self.0.clock.statement(schema::EXISTING).bind(key.as_str()).bind(leases::none());
        let row = row.fetch_optional(reader.connection()).await.map_err(store_error)?;
        let mut state = row.as_ref().map(StoredState::from_row).transpose()?;
        if matches!(state, Some(StoredState::Claimed(_))) {
            let looked = look(reader.connection(), self.0.context(), key, None).await;
            (state, _) = looked.map_err(Failure::into_error)?;
        }
        reader.give_back();
        Ok(state)
    }

    /// Returns a connection on which the database is `records` and the file of leases is `main`.
    async fn look(&self) -> Result<Acquired<'_>, StoreError> {
        match self.0.leases.look().await {
            Err(error) if leases::is_lost(&error) => {
                self.0.writer.submit(RepairWrite).await?;
                self.0.leases.look().await
            }
            look => look,
        }
    }

    /// Renews leases. Returns the tokens of the renewed leases.
    async fn renewed(&self, renewals: &[Renewal]) -> Result<HashSet<String>, StoreError> {
        let (store, renewals) = (self.clone(), renewals.to_vec());
        let renewing = async move {
            match store.0.leases.renew(&renewals).await {
                // Another process must not find a lease expired because the file of leases failed.
                Err(_) => store.0.writer.submit(RenewWrite(renewals)).await,
                renewed => renewed,
            }
        };
        // The file of leases has one connection that writes. A caller whose future is not polled must not block it.
        match Handle::try_current() {
            Ok(runtime) => runtime.spawn(renewing).await.map_err(StoreError::unavailable)?,
            Err(_) => renewing.await,
        }
    }
}

impl SqliteStore {
    /// Returns a page of the rows that the statement finds, in the order of the keys.
    async fn page(&self, statement: &'static str, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        // One row more than `limit` shows that there is a next page.
        let rows = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let Cursor(after) = cursor.unwrap_or_else(|| Cursor(String::new()));
        let mut look = self.look().await?;
        let found = self.0.clock.statement(statement).bind(&after).bind(rows).fetch_all(look.connection());
        let found = found.await.map_err(store_error)?;
        look.give_back();
        Page::from_rows(&found, limit, after, "key")
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
        // The write would wait for the end of the handler's transaction, which may last longer than a call may take.
        if let Some(fingerprint) = self.0.transactions.running().fingerprint(key) {
            return Ok(Claim::InFlight { fingerprint });
        }
        // A request that already has the claim may need a new lease, and a lapsed claim may have to be kept forever.
        // Both need the lock.
        if let Decision::Answer(claim) = decide(self.existing(key).await?, &request)
            && !matches!(claim, Claim::Acquired { .. } | Claim::Lapsed { .. })
        {
            return Ok(claim);
        }
        let call = Call::hold_back();
        let write = ClaimWrite::new(key.clone(), request, self.0.options.bound(), Arc::clone(&self.0.given_back));
        self.0.writer.submit_held_back(write, Some(call)).await
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let renewed = self.renewed(&[Renewal { key: key.clone(), token, lease }]).await?;
        Ok(Held::of(!renewed.is_empty()))
    }

    async fn renew_many(&self, renewals: &[Renewal]) -> Vec<Result<Held, StoreError>> {
        let renewed = self.renewed(renewals).await.map(|renewed| {
            renewals.iter().map(|renewal| Held::of(renewed.contains(&token_text(renewal.token)))).collect()
        });
        each(renewals.len(), renewed)
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        self.0.writer.submit(CompleteWrite::new(key.clone(), token, record, ttl)?).await
    }

    async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        let given_back = Arc::clone(&self.0.given_back);
        self.0.writer.submit(ReleaseWrite { key: key.clone(), token, given_back }).await
    }

    async fn extend(&self, key: &RecordKey, ttl: Duration) -> Result<Held, StoreError> {
        self.0.writer.submit(ExtendWrite { key: key.clone(), ttl }).await
    }

    fn transactions(&self) -> Option<Transactions> {
        Some(Transactions::of::<Sqlite, _>(Arc::new(self.clone())))
    }
}

impl StoreAdmin for SqliteStore {
    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        let mut look = self.look().await?;
        let row = self.0.clock.statement(schema::ENTRY).bind(key.as_str()).fetch_optional(look.connection());
        let row = row.await.map_err(store_error)?;
        look.give_back();
        row.as_ref().map(Entry::from_row).transpose()
    }

    async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.0.writer.submit(PurgeWrite { key: key.clone() }).await
    }

    async fn resolve(&self, key: &RecordKey, token: Token, resolution: Resolution) -> Result<Resolved, StoreError> {
        self.0.writer.submit(ResolveWrite::new(key, token, resolution)?).await
    }

    async fn delete_expired(&self) -> Result<usize, StoreError> {
        let deleted = self.0.writer.submit(DeleteExpiredWrite).await?;
        self.0.leases.delete_expired().await?;
        Ok(deleted)
    }

    async fn unknown_outcomes(&self) -> Result<UnknownOutcomes, StoreError> {
        let most = i64::try_from(UNKNOWN_OUTCOMES_COUNTED).unwrap_or(i64::MAX);
        let mut look = self.look().await?;
        let count = self.0.clock.statement(schema::UNKNOWN_OUTCOMES).bind(most);
        let rows = count.fetch_all(look.connection()).await.map_err(store_error)?;
        look.give_back();
        unknown_outcomes(&rows)
    }

    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.page(schema::LIST, cursor, limit).await
    }

    async fn claims(&self, cursor: Option<Cursor>, limit: usize) -> Result<Option<Page>, StoreError> {
        self.page(schema::CLAIMS, cursor, limit).await.map(Some)
    }
}
