//! Transactions for handlers: one at a time, since SQLite has one writer.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sqlx::SqlSafeStr as _;
use sqlx::sqlite::{Sqlite, SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteTransactionManager};
use sqlx_core::transaction::TransactionManager as _;

use super::clock::Clock;
use super::failure::{Failure, store_error};
use super::guard::{self, Guard};
use super::lock_time::LockTime;
use super::writes::{headers_text, held, keep, make_room};
use super::{SqliteStore, schema};
use crate::RecordKey;
use crate::policy::Isolation;
use crate::store::columns::{span_millis, token_text, unix_millis};
use crate::store::line::Call;
use crate::store::running::Running;
use crate::store::standing::{Standing, Verdict, judge};
use crate::store::{AfterCrash, Claim, ClaimRequest, Held, StoreError, Token};
use crate::sync::{Mutex, lock};
use crate::transaction::{Doubtful, Holder, Open, Recording, TransactionClaim, TransactionalStore};

/// Who writes in this process: the writer's thread for a batch, or a handler for its transaction. Waiting here is fair, as
/// waiting for SQLite's own lock is not.
pub(super) type Turn = Arc<tokio::sync::Mutex<()>>;

pub(super) struct HandlerTransactions {
    pool: SqlitePool,
    /// Of the connection that the pool has opened last.
    newest: Arc<Mutex<Arc<Guard>>>,
    turn: Turn,
    running: Arc<Running>,
}

impl HandlerTransactions {
    pub(super) fn new(options: SqliteConnectOptions, turn: Turn) -> Self {
        let newest = Arc::<Mutex<Arc<Guard>>>::default();
        let (opened, given_back) = (Arc::clone(&newest), Arc::clone(&newest));
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(move |connection, _| {
                let newest = Arc::clone(&opened);
                Box::pin(async move {
                    *lock(&newest) = Guard::watch(connection).await?;
                    Ok(())
                })
            })
            // What is not as it was is closed.
            .after_release(move |connection, _| {
                let guard = Arc::clone(&lock(&given_back));
                Box::pin(async move { guard.finds_as_it_was(connection).await })
            });
        Self { pool: pool.connect_lazy_with(options), newest, turn, running: Arc::default() }
    }

    pub(super) fn pool(&self) -> SqlitePool {
        self.pool.clone()
    }

    /// The keys of this process's handlers that run in a transaction.
    pub(super) fn running(&self) -> &Running {
        &self.running
    }

    /// With the write lock: a transaction that had read before it writes could not get it any more.
    async fn begin(&self, clock: Clock) -> Result<Open<Sqlite>, StoreError> {
        let call = Call::hold_back();
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let connection = self.pool.acquire().await.map_err(store_error)?;
        if !call.send() {
            return Err(StoreError::unavailable("the caller has given up"));
        }
        let mut connection = Doubtful::new(connection);
        // The pool has one connection, and only the one whose turn it is takes it.
        let guard = Arc::clone(&lock(&self.newest));
        let waiting = LockTime::starts(clock);
        SqliteTransactionManager::begin(&mut connection, Some(guard::BEGIN.into_sql_str()))
            .await
            .map_err(store_error)?;
        let holding = LockTime::starts(clock);
        guard.begun(clock, waiting, holding);
        waiting.make_up(&mut connection, clock).await.map_err(store_error)?;
        Ok(Open::new(connection, guard, Box::new(turn)))
    }
}

impl Holder for SqliteStore {
    /// In this process: nothing tells what a transaction of another one is about.
    fn holds<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move { Ok(self.0.transactions.running.fingerprint(key).is_some()) })
    }

    fn connections(&self) -> Option<u32> {
        None
    }
}

impl TransactionalStore<Sqlite> for SqliteStore {
    /// SQLite's transactions are serializable, whatever is asked for.
    fn begin(&self, _: Option<Isolation>) -> BoxFuture<'_, Result<Open<Sqlite>, StoreError>> {
        Box::pin(self.0.transactions.begin(self.0.clock))
    }

    fn claim<'a>(
        &'a self,
        key: &'a RecordKey,
        request: ClaimRequest,
        _: Option<Isolation>,
    ) -> BoxFuture<'a, Result<TransactionClaim<Sqlite>, StoreError>> {
        Box::pin(async move {
            let in_flight = |fingerprint| Ok(TransactionClaim::Standing(Claim::InFlight { fingerprint }));
            let transactions = &self.0.transactions;
            if let Some(fingerprint) = transactions.running.fingerprint(key) {
                return in_flight(fingerprint);
            }
            if let Verdict::Answer(claim) = judge(self.standing(key).await?, &request) {
                return Ok(TransactionClaim::Standing(claim));
            }
            let running = match transactions.running.enter(key, request.fingerprint) {
                Ok(running) => running,
                Err(fingerprint) => return in_flight(fingerprint),
            };
            let mut open = transactions.begin(self.0.clock).await?;
            // Again, under the write lock: another process may have recorded meanwhile.
            let row =
                schema::at(self.0.clock.now(), schema::STANDING).bind(key.as_str()).fetch_optional(&mut *open).await;
            let standing = row.map_err(store_error)?.as_ref().map(Standing::from_row).transpose()?;
            let is_fresh = standing.is_none();
            let attempt = match judge(standing, &request) {
                Verdict::Answer(claim) => return Ok(TransactionClaim::Standing(claim)),
                Verdict::Keep { token, fingerprint } => {
                    keep(&mut open, self.0.clock.now(), key, token).await.map_err(store_error)?;
                    open.commit().await?;
                    return Ok(TransactionClaim::Standing(Claim::Lapsed { fingerprint }));
                }
                Verdict::Take { attempt } => attempt,
            };
            if is_fresh && let Some(max_bytes) = self.0.options.bound() {
                make_room(&mut open, self.0.clock, max_bytes).await.map_err(failed)?;
            }
            Ok(TransactionClaim::Acquired { attempt, open: open.holding(running) })
        })
    }

    fn record<'a>(
        &'a self,
        open: &'a mut Open<Sqlite>,
        recording: &'a Recording,
    ) -> BoxFuture<'a, Result<Held, StoreError>> {
        Box::pin(async move {
            let Recording { key, request, record, .. } = recording;
            let recorded = schema::at(self.0.clock.now(), schema::RECORD)
                .bind(key.as_str())
                .bind(record.fingerprint.to_string())
                .bind(token_text(request.token))
                .bind(span_millis(request.ttl))
                .bind(unix_millis(record.recorded_at))
                .bind(record.status.as_u16())
                .bind(headers_text(record)?)
                .bind(record.body_bytes().map(AsRef::<[u8]>::as_ref))
                .bind(request.after_crash == AfterCrash::Rerun)
                .bind(request.fingerprint.to_string())
                .execute(&mut **open)
                .await;
            Ok(held(recorded.map_err(store_error)?.rows_affected() > 0))
        })
    }

    fn is_recorded<'a>(&'a self, key: &'a RecordKey, token: Token) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            // The write lock is free when the other transaction has ended.
            let mut open = self.0.transactions.begin(self.0.clock).await?;
            let found = schema::at(self.0.clock.now(), schema::COMPLETED_BY).bind(key.as_str()).bind(token_text(token));
            let found = found.fetch_optional(&mut *open).await.map_err(store_error)?;
            let _ = open.roll_back().await;
            Ok(found.is_some())
        })
    }
}

fn failed(failure: Failure) -> StoreError {
    match failure {
        Failure::Answer(error) => error,
        Failure::Sqlite(error) => store_error(error),
    }
}
