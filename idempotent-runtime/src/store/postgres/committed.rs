//! A handler's transaction that was committed, but not by the engine: its effects stay, and it has no record.
//!
//! The handler may send a COMMIT. sqlx may send one too: after a nested `begin` fails, or is dropped, on the connection itself, sqlx
//! counts too few levels. Only PostgreSQL can say whether the transaction was committed, by the transaction's id. If it was, the
//! store writes a record without a response, so that no retry runs the handler again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::AssertSqlSafe;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::key::RecordKey;
use crate::record::Record;
use crate::retries::Retries;
use crate::store::active_transactions::ActiveKey;
use crate::store::claim::{ClaimRequest, Held};
use crate::store::error::StoreError;
use crate::store::postgres::failure::store_error;
use crate::store::postgres::own::OwnPool;
use crate::store::postgres::record_statement::RecordStatement;
use crate::sync::tokio::time::Instant;
use crate::transaction::transactions::Recording;

/// The claim of a handler's transaction.
pub(super) struct HandlerClaim {
    pub(super) key: RecordKey,
    pub(super) request: ClaimRequest,
    /// The id of the transaction in PostgreSQL.
    pub(super) id: String,
    /// The time at which the transaction began, in seconds since 1970 by the server's clock.
    pub(super) began_at: String,
    /// The store's own pool, for single statements.
    pub(super) pool: Arc<OwnPool>,
    pub(super) statement: RecordStatement,
    /// The record to write, in its stored form: sealed, if the registry seals.
    pub(super) without_response: Record,
    /// Whether the engine has sent COMMIT after the record. Then the record itself shows whether the commit took effect.
    pub(super) is_recorded: AtomicBool,
    /// As long as this exists, no other request of this process gets the key.
    pub(super) _running: ActiveKey,
}

/// A transaction whose rollback was sent. If its caller stops waiting, this still finds out how the transaction ended.
pub(super) struct Ending(Option<Arc<HandlerClaim>>);

impl Ending {
    pub(super) fn of(claimed: Arc<HandlerClaim>) -> Self {
        Self(Some(claimed))
    }

    /// Does the same as [`HandlerClaim::record_if_committed`].
    pub(super) async fn record_if_committed(mut self, outcome: Option<String>) -> bool {
        match self.0.take() {
            Some(claimed) => claimed.record_if_committed(outcome).await,
            None => false,
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // If there is no runtime, the process is ending.
        if let (Some(claimed), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(claimed.record_if_committed(None));
        }
    }
}

/// How long one attempt to record may take.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// PostgreSQL's answer to [`HandlerClaim::status`] for a committed transaction.
const COMMITTED: &str = "committed";

impl HandlerClaim {
    /// Returns the statement that asks how the transaction has ended.
    pub(super) fn status(&self) -> String {
        format!("SELECT txid_status({}) AS outcome", self.id)
    }

    /// Returns the same statement for another connection. If the server has crashed in the meantime, another transaction may have the
    /// id, because the server forgets an id of which nothing was written. Then the answer is NULL. The server resets its statistics
    /// after every crash, even if only one of its processes crashed.
    fn status_unless_restarted(&self) -> String {
        let Self { id, began_at, .. } = self;
        format!(
            "SELECT CASE WHEN extract(epoch FROM pg_postmaster_start_time()) < {began_at} \
             AND extract(epoch FROM stats_reset) < {began_at} THEN txid_status({id}) END FROM pg_stat_bgwriter"
        )
    }

    pub(super) fn is_recorded(&self) -> bool {
        self.is_recorded.load(Ordering::SeqCst)
    }

    /// If the transaction was committed, records that. Without an `outcome`, this asks PostgreSQL first, because a connection may
    /// break after its commit. Returns whether the transaction was committed, as far as is known.
    ///
    /// Continues to its end even if the caller stops waiting.
    pub(super) async fn record_if_committed(self: Arc<Self>, outcome: Option<String>) -> bool {
        if outcome.as_deref().is_some_and(|outcome| outcome != COMMITTED) {
            return false;
        }
        let recording = tokio::spawn(async move { self.record(outcome.is_some()).await });
        recording.await.unwrap_or(false)
    }

    async fn record(&self, mut is_committed: bool) -> bool {
        let mut open = StillOpen::default();
        let mut retries = Retries::until(Deadline::after(self.request.lease), Backoff::OF_A_RECORD);
        while let Err(error) = self.try_record_in_time(&mut is_committed).await {
            if open.may_end(&error, &self.request) {
                // Until it ends, its lock keeps the key.
                retries.extend(Deadline::after(self.request.lease));
                if open.is_news(&self.request) {
                    self.tell_open();
                }
            }
            if !retries.pause().await {
                self.tell_unrecorded(is_committed, &error);
                break;
            }
        }
        is_committed
    }

    /// Has a time limit, so that a connection that no longer works is replaced by another one.
    async fn try_record_in_time(&self, is_committed: &mut bool) -> Result<(), StoreError> {
        let tried = timeout(ANSWERED_WITHIN, self.try_record(is_committed)).await;
        tried.unwrap_or(Err(StoreError::TimedOut(ANSWERED_WITHIN)))
    }

    async fn try_record(&self, is_committed: &mut bool) -> Result<(), StoreError> {
        if !*is_committed {
            let outcome: Option<String> = sqlx::query_scalar(AssertSqlSafe(self.status_unless_restarted()))
                .fetch_one(&*self.pool)
                .await
                .map_err(store_error)?;
            match outcome.as_deref() {
                Some(COMMITTED) => *is_committed = true,
                Some("in progress") => return Err(StoreError::unavailable(NotEnded)),
                _ => return Ok(()),
            }
        }
        let record = self.without_response.clone();
        let recording = Recording { key: self.key.clone(), request: self.request, record, may_be_awaited: true };
        let held = match self.statement.execute(&*self.pool, &recording).await? {
            Held::Yes => Held::Yes,
            // An earlier attempt may have written the record, and its answer may be lost.
            Held::No => self.statement.is_written(&*self.pool, &recording).await?,
        };
        self.tell(held);
        Ok(())
    }

    fn tell(&self, held: Held) {
        let scope = &*self.key.scope();
        if let Held::Yes = held {
            tracing::error!(
                scope,
                transaction = self.id,
                "a handler's transaction was committed by a COMMIT that is not the engine's: its effects stay, and retries get \
                 409 `response_not_recorded`; remove the COMMIT, and begin savepoints by `tx.begin()` only"
            );
        } else {
            tracing::error!(
                scope,
                transaction = self.id,
                "a handler's transaction was committed by a COMMIT that is not the engine's: its effects stay, and another \
                 request has taken the key meanwhile and may have repeated them"
            );
        }
    }

    fn tell_open(&self) {
        tracing::warn!(
            scope = &*self.key.scope(),
            transaction = self.id,
            "a handler's transaction is open in PostgreSQL, although its connection is lost: its key stays in flight until the \
             server ends the transaction; set `idle_in_transaction_session_timeout` or TCP keepalives there"
        );
    }

    fn tell_unrecorded(&self, is_committed: bool, error: &StoreError) {
        tracing::error!(
            scope = &*self.key.scope(),
            transaction = self.id,
            is_committed,
            error = error as &dyn std::error::Error,
            "a handler's transaction may have been committed by a COMMIT that is not the engine's, and this could not be \
             recorded: a retry may repeat its effects"
        );
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the transaction has not ended yet")]
struct NotEnded;

/// The time since which the transaction is known to be open although its connection is lost.
#[derive(Default)]
struct StillOpen {
    since: Option<Instant>,
    is_told: bool,
}

impl StillOpen {
    /// Returns whether the transaction is open and the store should ask again. It asks for at most the record's ttl.
    fn may_end(&mut self, error: &StoreError, request: &ClaimRequest) -> bool {
        let is_open = matches!(error, StoreError::Unavailable(source) if source.is::<NotEnded>());
        is_open && self.since.get_or_insert_with(Instant::now).elapsed() < request.ttl
    }

    /// Returns true once, when the transaction has been open for longer than a lease.
    fn is_news(&mut self, request: &ClaimRequest) -> bool {
        let is_long = self.since.is_some_and(|since| since.elapsed() > request.lease);
        is_long && !std::mem::replace(&mut self.is_told, true)
    }
}
