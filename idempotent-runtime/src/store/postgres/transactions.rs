//! Transactions for handlers, claimed by advisory locks.

use std::sync::atomic::AtomicBool;

use futures_util::future::BoxFuture;
use sqlx::postgres::Postgres;

use crate::key::RecordKey;
use crate::policy::values::Isolation;
use crate::store::claim::{Claim, Held, Token};
use crate::store::claim_decision::{Decision, StoredState, decide};
use crate::store::columns::token_text;
use crate::store::error::StoreError;
use crate::store::postgres::advisory_locks::{IS_LOCKED, OTHER_REQUEST, TRY_LOCK, try_locks};
use crate::store::postgres::claim::{held_in_transaction, keep};
use crate::store::postgres::committed::HandlerClaim;
use crate::store::postgres::failure::store_error;
use crate::store::postgres::in_transaction::{InTransaction, LOCKED};
use crate::store::postgres::inner::Inner;
use crate::store::postgres::row::{HeldInTransaction, digest};
use crate::store::postgres::store::PostgresStore;
use crate::store::row::Columns as _;
use crate::transaction::open::Open;
use crate::transaction::slot::{ClaimInTransaction, TransactionalStore};
use crate::transaction::transactions::{Holder, Recording, TxClaimRequest};

impl Holder for PostgresStore {
    fn holds<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            if self.0.running.fingerprint(key).is_some() {
                return Ok(true);
            }
            let held = sqlx::query_scalar(IS_LOCKED).bind(self.0.lock_of_key(key)).fetch_one(self.0.pools.own()).await;
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
            let begun = InTransaction::new(self.0.pools.shared());
            self.0.pools.begin(begun.begin(isolation, None), begun).await
        })
    }

    fn claim<'a>(
        &'a self,
        TxClaimRequest { key, request, isolation, without_response }: TxClaimRequest<'a>,
    ) -> BoxFuture<'a, Result<ClaimInTransaction<Postgres>, StoreError>> {
        Box::pin(async move {
            let in_flight = |fingerprint| Ok(ClaimInTransaction::Existing(Claim::InFlight { fingerprint }));
            if let Some(fingerprint) = self.0.running.fingerprint(key) {
                return in_flight(fingerprint);
            }
            match decide(existing(&self.0, key).await?, &request) {
                Decision::Answer(claim) => return Ok(ClaimInTransaction::Existing(claim)),
                Decision::Keep { token, fingerprint } => {
                    return keep(&self.0, key, token, fingerprint).await.map(ClaimInTransaction::Existing);
                }
                Decision::Take { .. } => {}
            }
            let running = match self.0.running.begin(key, request.fingerprint) {
                Ok(running) => running,
                Err(fingerprint) => return in_flight(fingerprint),
            };
            let (requests, asked_for) = self.0.lock_of_request(key, request.fingerprint);
            let lock_of_key = self.0.lock_of_key(key);
            let begun = InTransaction::new(self.0.pools.shared());
            let statements = begun.begin(isolation, Some(&try_locks(requests, asked_for, lock_of_key)));
            let mut open = self.0.pools.begin(statements, begun.clone()).await?;
            // This reads the key again under the locks, because the request that held them may have recorded in the meantime. It
            // reads outside of the transaction: depending on the isolation, the transaction's snapshot may be older than its locks.
            let (locked, existing) = tokio::join!(
                sqlx::query_as::<_, (String, String, String)>(LOCKED)
                    .persistent(!self.0.pools.is_pooled())
                    .fetch_one(&mut *open),
                existing(&self.0, key)
            );
            let (locked, id, began_at) = locked.map_err(store_error)?;
            match locked.as_str() {
                "acquired" => {}
                "same" => return in_flight(request.fingerprint),
                _ => {
                    let holder = holder(&self.0, &mut open, (requests, asked_for), lock_of_key).await?;
                    return Ok(ClaimInTransaction::Existing(held_in_transaction(request.fingerprint, &holder)));
                }
            }
            match decide(existing?, &request) {
                Decision::Answer(claim) => Ok(ClaimInTransaction::Existing(claim)),
                Decision::Keep { token, fingerprint } => {
                    keep(&self.0, key, token, fingerprint).await.map(ClaimInTransaction::Existing)
                }
                Decision::Take { attempt } => {
                    self.0.expired_deletion.start();
                    begun.holds(HandlerClaim {
                        key: key.clone(),
                        request,
                        id,
                        began_at,
                        pool: self.0.pools.shared(),
                        statement: self.0.record_statement(),
                        without_response,
                        is_recorded: AtomicBool::new(false),
                        _running: running,
                    });
                    Ok(ClaimInTransaction::Acquired { attempt, open })
                }
            }
        })
    }

    fn record<'a>(
        &'a self,
        open: &'a mut Open<Postgres>,
        recording: &'a Recording,
    ) -> BoxFuture<'a, Result<Held, StoreError>> {
        Box::pin(async move { self.0.record_statement().execute(&mut **open, recording).await })
    }

    fn is_recorded<'a>(&'a self, key: &'a RecordKey, token: Token) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            let begun = InTransaction::new(self.0.pools.shared());
            let mut open = self.0.pools.begin(begun.begin(None, None), begun).await?;
            let has_ended: bool = sqlx::query_scalar(TRY_LOCK)
                .bind(self.0.lock_of_key(key))
                .persistent(!self.0.pools.is_pooled())
                .fetch_one(&mut *open)
                .await
                .map_err(store_error)?;
            if !has_ended {
                return Err(StoreError::unavailable("the transaction has not ended yet"));
            }
            // Outside of the transaction, because the transaction's snapshot may be older than its lock.
            let query = self.0.statements.completed_by.query().bind(digest(key)).bind(token_text(token));
            let row = query.fetch_one(self.0.pools.own()).await.map_err(store_error)?;
            let _ = open.roll_back().await;
            sqlx::Row::try_get(&row, 0).map_err(store_error)
        })
    }
}

/// Returns the state of the key. A server that was demoted may lack the newest state, whether it follows another server or not.
async fn existing(inner: &Inner, key: &RecordKey) -> Result<Option<StoredState>, StoreError> {
    for _ in 0..2 {
        let row = inner.statements.existing.query().bind(digest(key)).fetch_one(inner.pools.own()).await;
        let row = row.map_err(store_error)?;
        let is_there = row.text("state")?.is_some();
        let existing = is_there.then(|| StoredState::from_row(&row)).transpose()?;
        let follows: bool = sqlx::Row::try_get(&row, "follows").map_err(store_error)?;
        // A record never changes, so an outdated server may return it.
        if !follows || matches!(existing, Some(StoredState::Completed(_))) {
            return Ok(existing);
        }
        inner.pools.own().leave_demoted();
    }
    Err(StoreError::unavailable("the server was demoted: it follows another one"))
}

/// Returns the request that holds the lock of the key, as far as the request's own lock shows it.
async fn holder(
    inner: &Inner,
    open: &mut Open<Postgres>,
    (requests, asked_for): (i32, i32),
    lock_of_key: i64,
) -> Result<HeldInTransaction, StoreError> {
    let compare = sqlx::query_scalar(OTHER_REQUEST).bind(requests).bind(asked_for).bind(lock_of_key);
    let compare = compare.persistent(!inner.pools.is_pooled());
    let other: Option<i32> = compare.fetch_one(&mut **open).await.map_err(store_error)?;
    Ok(other.map_or(HeldInTransaction::Same, HeldInTransaction::Other))
}
