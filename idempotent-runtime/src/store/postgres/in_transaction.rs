//! How a handler's transaction begins, how the store proves that it is still the same transaction, and how it ends.
//!
//! This uses two settings of the connection. The first is local to the transaction, has a unique value, and ends with the
//! transaction. The second belongs to the session: only a transaction with `READ WRITE` can write. A handler's transaction can end
//! too early, by the handler's own ROLLBACK or by a dropped future of a nested `begin`. Because of the settings, such a handler can
//! write nothing that stays.

use std::future::ready;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnection, PgTransactionManager, Postgres};
use sqlx::{AssertSqlSafe, Row as _, SqlSafeStr as _};
use sqlx_core::transaction::TransactionManager as _;
use tokio::time::timeout;

use crate::policy::values::Isolation;
use crate::store::claim::Token;
use crate::store::error::StoreError;
use crate::store::postgres::committed::{Ending, HandlerClaim};
use crate::store::postgres::failure::{at_the_end, is_aborted, is_transient, store_error};
use crate::store::postgres::own::OwnPool;
use crate::store::postgres::silent::{end_unanswered, silence};
use crate::transaction::begun::{Begun, Failure};
use crate::transaction::error::{Committed, Ended};

/// How long a rollback may take. After that its connection is closed, because it may no longer work.
const UNDONE_WITHIN: Duration = Duration::from_secs(2);

/// A transaction of a handler.
#[derive(Clone)]
pub(super) struct InTransaction {
    /// The value of the transaction's setting.
    marker: Arc<str>,
    /// The number of an advisory lock that only this transaction takes. Another connection finds the transaction by it.
    lock: i64,
    /// The store's own pool, for queries about the transaction.
    pool: Arc<OwnPool>,
    /// Set when the transaction holds the claim of a key.
    claimed: Arc<OnceLock<Arc<HandlerClaim>>>,
}

/// Restores the session's original value. A rollback undoes this, so it must run after each transaction that was not committed.
/// Behind a pooler it may run in another session, which has no saved value and does not change.
const LIFT_GUARD: &str = "SELECT set_config('default_transaction_read_only', current_setting('idempotent_runtime.read_only'), false), \
     set_config('idempotent_runtime.read_only', '', false) WHERE current_setting('idempotent_runtime.read_only', true) <> ''";

impl InTransaction {
    pub(super) fn new(pool: Arc<OwnPool>) -> Self {
        let unique = Token::unique().0.to_le_bytes();
        let lock = i64::from_le_bytes(*unique.first_chunk().expect("eight of sixteen bytes"));
        let marker = format!("{:032x}", u128::from_le_bytes(unique)).into();
        Self { marker, lock, pool, claimed: Arc::default() }
    }

    pub(super) fn holds(&self, claimed: HandlerClaim) {
        let is_first = self.claimed.set(Arc::new(claimed)).is_ok();
        debug_assert!(is_first, "a transaction claims one key");
    }

    /// Returns the statements that begin the transaction in one round trip. `try_locks` takes the locks of a key and says which it
    /// got.
    ///
    /// The statements save the role, because the record is written with the role with which the pool connected.
    pub(super) fn begin(&self, isolation: Option<Isolation>, try_locks: Option<&str>) -> String {
        let level = match isolation {
            None => "",
            Some(Isolation::RepeatableRead) => " ISOLATION LEVEL REPEATABLE READ",
            Some(Isolation::Serializable) => " ISOLATION LEVEL SERIALIZABLE",
        };
        let locked = try_locks.unwrap_or("''");
        // A pooler may return a session that is still read-only. Then the saved value is the right one. The settings are in a
        // transaction of their own, because PostgreSQL adds statements before a BEGIN to the transaction of that BEGIN. That
        // transaction is READ WRITE, so that a standby fails first. A standby must not keep the setting until it is the primary.
        // The transaction of the handler gets the same characteristics by AND CHAIN.
        format!(
            "BEGIN READ WRITE{level}; SELECT set_config('idempotent_runtime.read_only', \
             coalesce(nullif(current_setting('idempotent_runtime.read_only', true), ''), \
             current_setting('default_transaction_read_only')), false), \
             set_config('default_transaction_read_only', 'on', false); COMMIT AND CHAIN; \
             SELECT set_config('idempotent_runtime.transaction', '{marker}', true), \
             set_config('idempotent_runtime.user', current_setting('session_authorization'), true), \
             set_config('idempotent_runtime.role', current_setting('role'), true), \
             set_config('idempotent_runtime.locked', {locked}, true), \
             pg_try_advisory_xact_lock({lock})",
            marker = self.marker,
            lock = self.lock
        )
    }
}

impl Begun<Postgres> for InTransaction {
    /// Does nothing: sqlx counts the level as soon as the rollback is queued.
    fn catch_up<'a>(&'a self, _: &'a mut PgConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(ready(Ok(())))
    }

    /// Proves that the transaction is ours, and restores the role and the session's setting. Then checks everything that is deferred
    /// to the commit: if that fails here, one message undoes everything. A COMMIT that fails would leave the session's setting behind.
    fn prove<'a>(&'a self, connection: &'a mut PgConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        // PostgreSQL evaluates the columns in this order: the role follows the session's user, which resets it.
        let statements = format!(
            "SELECT is_ours, \
             CASE WHEN is_ours THEN set_config('session_authorization', current_setting('idempotent_runtime.user', true), false) END, \
             CASE WHEN is_ours THEN set_config('role', current_setting('idempotent_runtime.role', true), false) END, \
             CASE WHEN has_guard THEN set_config('default_transaction_read_only', current_setting('idempotent_runtime.read_only'), false) END, \
             CASE WHEN has_guard THEN set_config('idempotent_runtime.read_only', '', false) END \
             FROM (SELECT is_ours, is_ours AND current_setting('idempotent_runtime.read_only', true) <> '' AS has_guard FROM \
             (SELECT current_setting('idempotent_runtime.transaction', true) IS NOT DISTINCT FROM '{}' AS is_ours) AS ours) AS one; \
             SET CONSTRAINTS ALL IMMEDIATE",
            self.marker
        );
        Box::pin(async move {
            let rows = sqlx::raw_sql(AssertSqlSafe(statements)).fetch_all(connection).await.map_err(at_the_end)?;
            let is_ours: bool = rows.first().map_or(Ok(false), |row| row.try_get(0)).map_err(store_error)?;
            if is_ours { Ok(()) } else { Err(StoreError::unavailable(Ended)) }
        })
    }

    fn commit<'a>(&'a self, connection: &'a mut PgConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            if let Some(claimed) = self.claimed.get() {
                claimed.is_recorded.store(true, Ordering::SeqCst);
            }
            PgTransactionManager::commit(connection).await.map_err(at_the_end)
        })
    }

    fn is_over(&self, connection: &PgConnection) -> bool {
        PgTransactionManager::get_transaction_depth(connection) == 0
    }

    fn roll_back<'a>(&'a self, connection: &'a mut PgConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            // In one message, because behind a pooler the next message may go to another connection of the server.
            let claimed = self.claimed.get().filter(|claimed| !claimed.is_recorded());
            let status = claimed.map_or_else(|| "SELECT NULL AS outcome".to_owned(), |claimed| claimed.status());
            let undo = format!("ROLLBACK; {LIFT_GUARD}; {status}");
            let ending = claimed.map(|claimed| Ending::of(Arc::clone(claimed)));
            // The claim may have timed out. Then its rollback has no caller with a time limit.
            let undoing = timeout(UNDONE_WITHIN, sqlx::raw_sql(AssertSqlSafe(undo)).fetch_all(&mut *connection)).await;
            let undone = if let Ok(undone) = undoing {
                undone.map_err(store_error)
            } else {
                // The ROLLBACK may be lost, and the server may wait for it. No handler has begun, so nothing can be committed.
                if self.claimed.get().is_none() {
                    end_unanswered(&self.pool, self.lock).await;
                }
                Err(StoreError::TimedOut(UNDONE_WITHIN))
            };
            let Some(ending) = ending else {
                undone?;
                return for_sqlx(connection).await;
            };
            let last = undone.as_ref().ok().and_then(|rows| rows.last());
            let outcome = last.and_then(|row| row.try_get::<Option<String>, _>("outcome").ok()?);
            if ending.record_if_committed(outcome).await {
                return Err(StoreError::unavailable(Committed));
            }
            undone?;
            for_sqlx(connection).await
        })
    }

    fn silence(&self) -> BoxFuture<'_, ()> {
        Box::pin(silence(&self.pool, self.lock))
    }

    fn find_out(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let Some(claimed) = self.claimed.get() else { return Ok(()) };
            let is_committed = Ending::of(Arc::clone(claimed)).record_if_committed(None).await;
            if is_committed { Err(StoreError::unavailable(Committed)) } else { Ok(()) }
        })
    }

    fn failure(&self, error: &sqlx::Error) -> Option<Failure> {
        error.as_database_error()?;
        Some(if is_aborted(error) {
            Failure::Aborted
        } else if is_transient(error) {
            Failure::Conflict
        } else {
            Failure::Other
        })
    }

    /// PostgreSQL reports only the answers to statements, so this compares sqlx's count of levels. If a level is missing, the
    /// transaction has ended. An extra level belongs to a nested transaction that was not ended.
    fn has_ended(&self, connection: &PgConnection, depth: usize) -> bool {
        PgTransactionManager::get_transaction_depth(connection) != depth
    }

    /// A read-only session can still send notifications and change large objects. So the session waits in a failed
    /// transaction.
    fn close_off(&self, connection: &mut PgConnection) {
        while PgTransactionManager::get_transaction_depth(connection) > 0 {
            PgTransactionManager::start_rollback(connection);
        }
        // The first poll queues the statements. The drop undoes nothing, because sqlx counts no level.
        let failed = "BEGIN READ ONLY; SELECT 'the transaction of this handler has ended'::integer";
        let _ = PgTransactionManager::begin(connection, Some(failed.into_sql_str())).now_or_never();
    }
}

/// Corrects sqlx's count of levels after a ROLLBACK that sqlx did not send itself.
async fn for_sqlx(connection: &mut PgConnection) -> Result<(), StoreError> {
    PgTransactionManager::rollback(connection).await.map_err(store_error)
}
