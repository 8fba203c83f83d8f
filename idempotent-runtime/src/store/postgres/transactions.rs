//! Transactions for handlers, claimed by advisory locks.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::Row as _;
use sqlx::postgres::{PgRow, Postgres};
use tokio::time::timeout;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::policy::values::Isolation;
use crate::record::Record;
use crate::store::active_transactions::ActiveKey;
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::claim_decision::{Decision, StoredState, decide};
use crate::store::columns::token_text;
use crate::store::error::StoreError;
use crate::store::postgres::advisory_locks::{IS_LOCKED, OTHER_REQUEST, TRY_LOCK, try_locks};
use crate::store::postgres::claim::{held_in_transaction, keep};
use crate::store::postgres::committed::HandlerClaim;
use crate::store::postgres::failure::{is_from_demoted, store_error};
use crate::store::postgres::in_transaction::InTransaction;
use crate::store::postgres::inner::Inner;
use crate::store::postgres::row::{HeldInTransaction, digest};
use crate::store::postgres::store::PostgresStore;
use crate::store::row::Columns as _;
use crate::transaction::open::Open;
use crate::transaction::transactional_store::{ClaimInTransaction, TransactionalStore};
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
        claim: TxClaimRequest<'a>,
    ) -> BoxFuture<'a, Result<ClaimInTransaction<Postgres>, StoreError>> {
        Box::pin(async move {
            let claiming = Claiming { inner: &self.0, key: claim.key, request: &claim.request };
            if let Some(fingerprint) = self.0.running.fingerprint(claim.key) {
                return Ok(ClaimInTransaction::Existing(Claim::InFlight { fingerprint }));
            }
            let looks_up_first = self.0.looks_up_first();
            if looks_up_first {
                match claiming.look_up().await {
                    Ok(None) => {}
                    Ok(Some(existing)) => return Ok(ClaimInTransaction::Existing(existing)),
                    // The connections of the application's pool may lead to the new primary already.
                    Err(StoreError::Unavailable(source)) if source.is::<Demoted>() => {}
                    Err(error) => return Err(error),
                }
            }
            match self.0.running.begin(claim.key, claim.request.fingerprint) {
                Ok(running) => claiming.begin(running, claim.isolation, claim.without_response).await,
                // The look-up has just found no record.
                Err(fingerprint) if looks_up_first => Ok(ClaimInTransaction::Existing(Claim::InFlight { fingerprint })),
                Err(fingerprint) => claiming.beside_another(fingerprint).await.map(ClaimInTransaction::Existing),
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
            row.try_get(0).map_err(store_error)
        })
    }
}

/// How long a claim waits for a connection of the application's pool before it looks up the row of its key.
const PATIENCE: Duration = Duration::from_millis(50);

/// A claim in a transaction.
///
/// Most requests are the first of their key. So the transaction begins at once, and its second statement returns the row of the key.
/// Only if that is likely to be in vain, the row is looked up first, by a statement of the store's own pool.
struct Claiming<'a> {
    inner: &'a Inner,
    key: &'a RecordKey,
    request: &'a ClaimRequest,
}

impl Inner {
    /// Returns whether claims look up the row of their key before they begin a transaction. Records are replayed even if handlers use
    /// all connections of the application's pool. After a request whose key had a row, others are likely: clients send requests again
    /// after an outage. The store's own pool must also have found out whether there is a pooler.
    fn looks_up_first(&self) -> bool {
        self.expects_rows.load(Ordering::Relaxed)
            || self.pools.application().num_idle() == 0
            || !self.pools.knows_pooler()
    }
}

impl Claiming<'_> {
    /// Returns the answer to the claim if the key has a row.
    async fn look_up(&self) -> Result<Option<Claim>, StoreError> {
        let existing = existing(self.inner, self.key).await?;
        self.inner.expects_rows.store(existing.is_some(), Ordering::Relaxed);
        Ok(self.decide(existing).await?.err())
    }

    /// Returns the attempt if the claim may take the key.
    async fn decide(&self, existing: Option<StoredState>) -> Result<Result<u32, Claim>, StoreError> {
        match decide(existing, self.request) {
            Decision::Answer(claim) => Ok(Err(claim)),
            Decision::Keep { token, fingerprint } => keep(self.inner, self.key, token, fingerprint).await.map(Err),
            Decision::Take { attempt } => Ok(Ok(attempt)),
        }
    }

    /// Answers a claim while another request of this process claims the key. That request may find a record, and replay it.
    async fn beside_another(&self, fingerprint: Fingerprint) -> Result<Claim, StoreError> {
        match decide(existing(self.inner, self.key).await?, self.request) {
            Decision::Answer(claim) => Ok(claim),
            _ => Ok(Claim::InFlight { fingerprint }),
        }
    }

    async fn begin(
        &self,
        running: ActiveKey,
        isolation: Option<Isolation>,
        without_response: Record,
    ) -> Result<ClaimInTransaction<Postgres>, StoreError> {
        let Self { inner, key, request } = *self;
        let (requests, asked_for) = inner.lock_of_request(key, request.fingerprint);
        let lock_of_key = inner.lock_of_key(key);
        let begun = InTransaction::new(inner.pools.shared());
        let statements = begun.begin(isolation, Some(&try_locks(requests, asked_for, lock_of_key)));
        let mut beginning = pin!(inner.pools.begin(statements, begun.clone()));
        let begins = match timeout(PATIENCE, &mut beginning).await {
            Ok(begins) => begins,
            // Handlers may use all connections for long. A record is replayed without one.
            Err(_) => match self.look_up().await {
                Ok(Some(existing)) => return Ok(ClaimInTransaction::Existing(existing)),
                Ok(None) | Err(_) => beginning.await,
            },
        };
        let mut open = match begins {
            Ok(open) => open,
            // A server that was demoted still has its records.
            Err(error) if is_from_demoted(&error) => {
                return self.look_up().await?.map(ClaimInTransaction::Existing).ok_or(error);
            }
            Err(error) => return Err(error),
        };
        let row = inner.statements.claim_in_transaction.query().bind(digest(key)).fetch_one(&mut *open).await;
        let row = row.map_err(store_error)?;
        let existing = if text(&row, "isolation")? == "read committed" {
            row.text("state")?.is_some().then(|| StoredState::from_row(&row)).transpose()?
        } else {
            // Outside of the transaction, whose snapshot may be older than its locks.
            existing(inner, key).await?
        };
        inner.expects_rows.store(existing.is_some(), Ordering::Relaxed);
        let locked = text(&row, "locked")?;
        if locked != "acquired" {
            return Ok(ClaimInTransaction::Existing(match decide(existing, request) {
                // Another request may have the locks only because it is about to find the same record.
                Decision::Answer(claim) => claim,
                _ if locked == "same" => Claim::InFlight { fingerprint: request.fingerprint },
                _ => {
                    let holder = holder(inner, &mut open, (requests, asked_for), lock_of_key).await?;
                    held_in_transaction(request.fingerprint, &holder)
                }
            }));
        }
        let attempt = match self.decide(existing).await? {
            Ok(attempt) => attempt,
            Err(existing) => return Ok(ClaimInTransaction::Existing(existing)),
        };
        inner.expired_deletion.start();
        begun.holds(HandlerClaim {
            key: key.clone(),
            request: *request,
            id: text(&row, "transaction_id")?.to_owned(),
            began_at: text(&row, "began_at")?.to_owned(),
            pool: inner.pools.shared(),
            statement: inner.record_statement(),
            without_response,
            is_recorded: AtomicBool::new(false),
            _running: running.claimed(),
        });
        Ok(ClaimInTransaction::Acquired { attempt, open })
    }
}

fn text<'r>(row: &'r PgRow, name: &str) -> Result<&'r str, StoreError> {
    row.try_get(name).map_err(store_error)
}

/// Returns the state of the key. A server that was demoted may lack the newest state, whether it follows another server or not.
async fn existing(inner: &Inner, key: &RecordKey) -> Result<Option<StoredState>, StoreError> {
    for _ in 0..2 {
        let row = inner.statements.existing.query().bind(digest(key)).fetch_one(inner.pools.own()).await;
        let row = row.map_err(store_error)?;
        let is_there = row.text("state")?.is_some();
        let existing = is_there.then(|| StoredState::from_row(&row)).transpose()?;
        let follows: bool = row.try_get("follows").map_err(store_error)?;
        // A record never changes, so an outdated server may return it.
        if !follows || matches!(existing, Some(StoredState::Completed(_))) {
            return Ok(existing);
        }
        inner.pools.own().leave_demoted();
    }
    Err(StoreError::unavailable(Demoted))
}

#[derive(Debug, thiserror::Error)]
#[error("the server was demoted: it follows another one")]
struct Demoted;

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
