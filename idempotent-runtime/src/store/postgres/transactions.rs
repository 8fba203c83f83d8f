//! Transactions for handlers, claimed by advisory locks.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_util::future::BoxFuture;
use sqlx::postgres::{PgExecutor, Postgres};

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::policy::values::Isolation;
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::claim_decision::{Decision, StoredState, decide};
use crate::store::columns::token_text;
use crate::store::error::StoreError;
use crate::store::postgres::advisory_locks::lock;
use crate::store::postgres::claim::held_in_transaction;
use crate::store::postgres::committed::Claimed;
use crate::store::postgres::failure::store_error;
use crate::store::postgres::in_transaction::{InTransaction, LOCKED};
use crate::store::postgres::record_statement::RecordStatement;
use crate::store::postgres::row::{HeldInTransaction, digest};
use crate::store::postgres::statements::{IS_LOCKED, OTHER_REQUEST, TRY_LOCK, try_locks};
use crate::store::postgres::store::PostgresStore;
use crate::transaction::open::Open;
use crate::transaction::slot::{TransactionClaim, TransactionalStore};
use crate::transaction::transactions::{Holder, Recording};

impl PostgresStore {
    pub(super) fn lock_of_key(&self, key: &RecordKey) -> i64 {
        lock(b"key", &[self.0.schema.as_bytes(), key.as_str().as_bytes()])
    }

    /// The lock has two halves: one identifies the key, the other has bits of the fingerprint.
    pub(super) fn lock_of_request(&self, key: &RecordKey, fingerprint: Fingerprint) -> (i32, i32) {
        let half = |lock: i64| *lock.to_le_bytes().first_chunk().expect("four of eight bytes");
        let requests = lock(b"requests", &[self.0.schema.as_bytes(), key.as_str().as_bytes()]);
        (i32::from_le_bytes(half(requests)), fingerprint.bits())
    }

    fn record_statement(&self) -> RecordStatement {
        RecordStatement { statements: Arc::clone(&self.0.statements), channel: self.0.listener.channel().to_owned() }
    }

    async fn existing<'c>(
        &self,
        executor: impl PgExecutor<'c>,
        key: &RecordKey,
    ) -> Result<Option<StoredState>, StoreError> {
        let row = self.0.statements.existing.query().bind(digest(key)).fetch_optional(executor).await;
        row.map_err(store_error)?.as_ref().map(StoredState::from_row).transpose()
    }
}

impl Holder for PostgresStore {
    fn holds<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            if self.0.running.fingerprint(key).is_some() {
                return Ok(true);
            }
            let held = sqlx::query_scalar(IS_LOCKED).bind(self.lock_of_key(key)).fetch_one(self.0.pools.own()).await;
            held.map_err(store_error)
        })
    }

    fn connections(&self) -> Option<u32> {
        Some(self.0.pools.application().options().get_max_connections())
    }
}

impl TransactionalStore<Postgres> for PostgresStore {
    fn begin(&self, isolation: Option<Isolation>) -> BoxFuture<'_, Result<Open<Postgres>, StoreError>> {
        Box::pin(async move {
            let begun = InTransaction::new();
            self.0.pools.begin(begun.begin(isolation, None), begun).await
        })
    }

    fn claim<'a>(
        &'a self,
        key: &'a RecordKey,
        request: ClaimRequest,
        isolation: Option<Isolation>,
    ) -> BoxFuture<'a, Result<TransactionClaim<Postgres>, StoreError>> {
        Box::pin(async move {
            let in_flight = |fingerprint| Ok(TransactionClaim::Existing(Claim::InFlight { fingerprint }));
            if let Some(fingerprint) = self.0.running.fingerprint(key) {
                return in_flight(fingerprint);
            }
            match decide(self.existing(self.0.pools.own(), key).await?, &request) {
                Decision::Answer(claim) => return Ok(TransactionClaim::Existing(claim)),
                Decision::Keep { token, fingerprint } => {
                    return self.keep(key, token, fingerprint).await.map(TransactionClaim::Existing);
                }
                Decision::Take { .. } => {}
            }
            let running = match self.0.running.enter(key, request.fingerprint) {
                Ok(running) => running,
                Err(fingerprint) => return in_flight(fingerprint),
            };
            let (requests, asked_for) = self.lock_of_request(key, request.fingerprint);
            let lock_of_key = self.lock_of_key(key);
            let begun = InTransaction::new();
            let statements = begun.begin(isolation, Some(&try_locks(requests, asked_for, lock_of_key)));
            let mut open = self.0.pools.begin(statements, begun.clone()).await?;
            // Looked for again under the locks, since the request that held them may have recorded meanwhile; and outside of
            // the transaction, whose snapshot may be older than its locks, as its isolation has it.
            let (locked, existing) = tokio::join!(
                sqlx::query_as::<_, (String, String, String)>(LOCKED)
                    .persistent(!self.0.pools.is_pooled())
                    .fetch_one(&mut *open),
                self.existing(self.0.pools.own(), key)
            );
            let (locked, id, began_at) = locked.map_err(store_error)?;
            match locked.as_str() {
                "acquired" => {}
                "same" => return in_flight(request.fingerprint),
                _ => {
                    let compare = sqlx::query_scalar(OTHER_REQUEST).bind(requests).bind(asked_for).bind(lock_of_key);
                    let compare = compare.persistent(!self.0.pools.is_pooled());
                    let other: Option<i32> = compare.fetch_one(&mut *open).await.map_err(store_error)?;
                    let holder = other.map_or(HeldInTransaction::Same, HeldInTransaction::Other);
                    return Ok(TransactionClaim::Existing(held_in_transaction(request.fingerprint, &holder)));
                }
            }
            match decide(existing?, &request) {
                Decision::Answer(claim) => Ok(TransactionClaim::Existing(claim)),
                Decision::Keep { token, fingerprint } => {
                    self.keep(key, token, fingerprint).await.map(TransactionClaim::Existing)
                }
                Decision::Take { attempt } => {
                    self.0.expired_deletion.start();
                    begun.holds(Claimed {
                        key: key.clone(),
                        request,
                        id,
                        began_at,
                        pool: self.0.pools.shared(),
                        statement: self.record_statement(),
                        is_recorded: AtomicBool::new(false),
                        _running: running,
                    });
                    Ok(TransactionClaim::Acquired { attempt, open })
                }
            }
        })
    }

    fn record<'a>(
        &'a self,
        open: &'a mut Open<Postgres>,
        recording: &'a Recording,
    ) -> BoxFuture<'a, Result<Held, StoreError>> {
        Box::pin(async move { self.record_statement().execute(&mut **open, recording).await })
    }

    fn is_recorded<'a>(&'a self, key: &'a RecordKey, token: Token) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            let begun = InTransaction::new();
            let mut open = self.0.pools.begin(begun.begin(None, None), begun).await?;
            let has_ended: bool = sqlx::query_scalar(TRY_LOCK)
                .bind(self.lock_of_key(key))
                .persistent(!self.0.pools.is_pooled())
                .fetch_one(&mut *open)
                .await
                .map_err(store_error)?;
            if !has_ended {
                return Err(StoreError::unavailable("the transaction has not ended yet"));
            }
            // Outside of the transaction, whose snapshot may be older than its lock.
            let query = self.0.statements.completed_by.query().bind(digest(key)).bind(token_text(token));
            let row = query.fetch_one(self.0.pools.own()).await.map_err(store_error)?;
            let _ = open.roll_back().await;
            sqlx::Row::try_get(&row, 0).map_err(store_error)
        })
    }
}
