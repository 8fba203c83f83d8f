//! The claim and the record of a handler that runs in a transaction.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments};
use tokio::time::timeout;

use crate::key::RecordKey;
use crate::policy::values::Isolation;
use crate::record::unix_millis;
use crate::store::active_transactions::ActiveKey;
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::claim_decision::{Decision, decide};
use crate::store::columns::{span_millis, token_text};
use crate::store::error::StoreError;
use crate::store::row::headers_text;
use crate::store::sqlite::bound::{counted_bytes, counted_owner};
use crate::store::sqlite::failure::{Failure, store_error};
use crate::store::sqlite::guard::commit_error;
use crate::store::sqlite::locked::{Decided, decide_claim, keep};
use crate::store::sqlite::schema;
use crate::store::sqlite::store::SqliteStore;
use crate::transaction::open::Open;
use crate::transaction::transactional_store::{ClaimInTransaction, TransactionalStore};
use crate::transaction::transactions::{Holder, Recording, TxClaimRequest};

impl Holder for SqliteStore {
    /// Checks only this process, because SQLite does not show the keys of other processes' transactions.
    fn holds<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move { Ok(self.0.transactions.running.fingerprint(key).is_some()) })
    }

    fn connections(&self) -> Option<u32> {
        None
    }
}

impl TransactionalStore<Sqlite> for SqliteStore {
    /// Begins a transaction. SQLite's transactions are serializable, whatever isolation is requested.
    fn begin(&self, _: Option<Isolation>) -> BoxFuture<'_, Result<Open<Sqlite>, StoreError>> {
        Box::pin(async {
            self.0.file.check()?;
            self.0.transactions.begin().await
        })
    }

    fn claim<'a>(
        &'a self,
        TxClaimRequest { key, request, .. }: TxClaimRequest<'a>,
    ) -> BoxFuture<'a, Result<ClaimInTransaction<Sqlite>, StoreError>> {
        Box::pin(async move {
            let in_flight = |fingerprint| Ok(ClaimInTransaction::Existing(Claim::InFlight { fingerprint }));
            let transactions = &self.0.transactions;
            if let Some(fingerprint) = transactions.running.fingerprint(key) {
                return in_flight(fingerprint);
            }
            let looks_up_first = transactions.expects_rows.load(Ordering::Relaxed);
            if looks_up_first && let Some(existing) = self.look_up(key, &request).await? {
                return Ok(ClaimInTransaction::Existing(existing));
            }
            let running = match transactions.running.begin(key, request.fingerprint) {
                Ok(running) => running,
                // The look-up has just found no record.
                Err(fingerprint) if looks_up_first => return in_flight(fingerprint),
                // The other request may find a record, and replay it.
                Err(fingerprint) => {
                    let existing = self.look_up(key, &request).await?;
                    return Ok(ClaimInTransaction::Existing(existing.unwrap_or(Claim::InFlight { fingerprint })));
                }
            };
            if looks_up_first {
                return self.claim_under_lock(key, request, running.claimed()).await;
            }
            match self.begin_for(key, &request).await? {
                Begins::Fresh(mut open) => {
                    self.admit(&mut open, key, &request).await?;
                    Ok(ClaimInTransaction::Acquired { attempt: 1, open: open.holding(running.claimed()) })
                }
                Begins::WithRow => {
                    transactions.expects_rows.store(true, Ordering::Relaxed);
                    match self.look_up(key, &request).await? {
                        Some(existing) => Ok(ClaimInTransaction::Existing(existing)),
                        None => self.claim_under_lock(key, request, running.claimed()).await,
                    }
                }
                Begins::Answered(existing) => Ok(ClaimInTransaction::Existing(existing)),
            }
        })
    }

    fn record<'a>(
        &'a self,
        open: &'a mut Open<Sqlite>,
        recording: &'a Recording,
    ) -> BoxFuture<'a, Result<Held, StoreError>> {
        Box::pin(async move {
            let Recording { key, request, .. } = recording;
            if self.write(open, recording, None).await? {
                return Ok(Held::Yes);
            }
            // There is a claim whose lease had expired when the transaction began.
            let decided = decide_claim(open, self.0.context(), key, request, None).await;
            match decided.map_err(Failure::into_error)?.decision {
                Decision::Take { attempt } => Ok(Held::of(self.write(open, recording, Some(attempt)).await?)),
                _ => Ok(Held::No),
            }
        })
    }

    /// A handler that has had the connection itself may have replaced the hooks. Without them, the statement of the record would
    /// commit by itself after the end of the transaction.
    fn records_with_commit(&self) -> bool {
        self.0.transactions.guard().has_hooks()
    }

    fn record_and_commit<'a>(
        &'a self,
        open: &'a mut Open<Sqlite>,
        recording: &'a Recording,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            let guard = self.0.transactions.guard();
            guard.holds()?;
            let headers = headers_text(&recording.record)?;
            let record = self.bound(schema::RECORD_AND_COMMIT, recording, &headers, None);
            match guard.record_and_commit(open, record).await {
                Ok(()) => Ok(true),
                // The key has a row: an expired one, or a claim that this request takes over.
                Err(error) if is_unique_violation(&error) => Ok(false),
                Err(error) => Err(commit_error(error)),
            }
        })
    }

    fn is_recorded<'a>(&'a self, key: &'a RecordKey, token: Token) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            // The write lock becomes free when the other transaction has ended.
            let mut open = self.0.transactions.begin().await?;
            let found = schema::at(self.0.clock.now(), schema::COMPLETED_BY).bind(key.as_str()).bind(token_text(token));
            let found = found.fetch_optional(&mut *open).await.map_err(store_error)?;
            let _ = open.roll_back().await;
            Ok(found.is_some())
        })
    }
}

/// How long a claim waits for the write lock before it looks up the row of its key.
const PATIENCE: Duration = Duration::from_millis(50);

/// How the transaction of a claim begins.
enum Begins {
    /// The key has no row.
    Fresh(Open<Sqlite>),
    /// The key has a row, and the transaction was rolled back.
    WithRow,
    /// The write lock was not free, and the claim was answered without it.
    Answered(Claim),
}

impl SqliteStore {
    /// Returns the answer to the claim if the key has a row, as far as a connection without the write lock shows it.
    async fn look_up(&self, key: &RecordKey, request: &ClaimRequest) -> Result<Option<Claim>, StoreError> {
        let existing = self.existing(key).await?;
        self.0.transactions.expects_rows.store(existing.is_some(), Ordering::Relaxed);
        Ok(match decide(existing, request) {
            // An expired lease is decided under the lock, as without a transaction.
            Decision::Answer(claim) if !matches!(claim, Claim::Lapsed { .. }) => Some(claim),
            _ => None,
        })
    }

    /// Begins a transaction, and finds out whether the key has a row. Most requests are the first of their key, so it is not looked
    /// up before.
    async fn begin_for(&self, key: &RecordKey, request: &ClaimRequest) -> Result<Begins, StoreError> {
        self.0.file.check()?;
        let (store, of_key) = (self.clone(), key.clone());
        let mut beginning = Box::pin(async move {
            let begin = sqlx::query(schema::BEGIN_AND_ANY).bind(of_key.as_str());
            store.0.transactions.begin_with(begin).await
        });
        let begun = match timeout(PATIENCE, &mut beginning).await {
            Ok(begun) => begun,
            // Handlers, or another process, may have the lock for long. A record is replayed without it.
            Err(_) => match self.look_up(key, request).await {
                Ok(Some(existing)) => {
                    // A transaction that begins later is rolled back. If this was cancelled, its connection would be closed.
                    tokio::spawn(beginning);
                    return Ok(Begins::Answered(existing));
                }
                Ok(None) | Err(_) => beginning.await,
            },
        };
        match begun {
            Ok((open, None)) => Ok(Begins::Fresh(open)),
            Ok((open, Some(_))) => {
                open.roll_back().await?;
                Ok(Begins::WithRow)
            }
            // A record is replayed even if nothing can be written.
            Err(error) => self.look_up(key, request).await.ok().flatten().map(Begins::Answered).ok_or(error),
        }
    }

    /// Makes the decision under the write lock, because another process may have recorded since the look-up.
    async fn claim_under_lock(
        &self,
        key: &RecordKey,
        request: ClaimRequest,
        running: ActiveKey,
    ) -> Result<ClaimInTransaction<Sqlite>, StoreError> {
        let mut open = self.0.transactions.begin().await?;
        let decided = decide_claim(&mut open, self.0.context(), key, &request, None).await;
        let Decided { decision, is_fresh } = decided.map_err(Failure::into_error)?;
        let attempt = match decision {
            Decision::Answer(claim) => return Ok(ClaimInTransaction::Existing(claim)),
            Decision::Keep { token, fingerprint } => {
                keep(&mut open, key, token).await.map_err(store_error)?;
                open.commit().await?;
                return Ok(ClaimInTransaction::Existing(Claim::Lapsed { fingerprint }));
            }
            Decision::Take { attempt } => attempt,
        };
        if is_fresh {
            self.admit(&mut open, key, &request).await?;
        }
        Ok(ClaimInTransaction::Acquired { attempt, open: open.holding(running) })
    }

    /// Fails if there is no room for a new row.
    async fn admit(&self, open: &mut Open<Sqlite>, key: &RecordKey, request: &ClaimRequest) -> Result<(), StoreError> {
        let Some(bound) = self.0.options.bound() else { return Ok(()) };
        bound.admit(open, self.0.context(), key, request).await.map_err(Failure::into_error)
    }

    /// Writes the record of a transaction. With an attempt, it replaces the existing row.
    async fn write(
        &self,
        open: &mut Open<Sqlite>,
        recording: &Recording,
        attempt: Option<u32>,
    ) -> Result<bool, StoreError> {
        let headers = headers_text(&recording.record)?;
        let written = self.bound(schema::RECORD, recording, &headers, attempt).execute(&mut **open).await;
        Ok(written.map_err(store_error)?.rows_affected() > 0)
    }

    fn bound(
        &self,
        sql: &'static str,
        Recording { key, request, record, .. }: &Recording,
        headers: &str,
        attempt: Option<u32>,
    ) -> Query<'static, Sqlite, SqliteArguments> {
        schema::at(self.0.clock.now(), sql)
            .bind(key.as_str())
            .bind(record.fingerprint.to_string())
            .bind(token_text(request.token))
            .bind(span_millis(request.ttl))
            .bind(unix_millis(record.recorded_at))
            .bind(record.status.as_u16())
            .bind(headers)
            .bind(record.body_bytes().map(AsRef::<[u8]>::as_ref))
            .bind(attempt)
            .bind(self.0.clock.after(request.ttl))
            .bind(counted_owner(self.0.options.bound(), request))
            .bind(counted_bytes(key, Some((headers, record))))
    }
}

fn is_unique_violation(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}
