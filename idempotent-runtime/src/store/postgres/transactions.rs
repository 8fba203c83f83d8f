//! Transactions for handlers, claimed by advisory locks.

use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use sqlx::postgres::{PgExecutor, Postgres};

use super::failure::{is_aborted, store_error};
use super::row::digest;
use super::statements::{HOLDS_ANOTHER_REQUEST, LOCK, TRY_LOCK};
use super::{PostgresStore, headers_text, held, held_in_transaction};
use crate::store::columns::{span_millis, token_text, unix_millis};
use crate::store::standing::{Standing, Verdict, judge};
use crate::store::{AfterCrash, Claim, ClaimRequest, Held, StoreError, Token};
use crate::transaction::{Aborted, Open, Recording, TransactionClaim, TransactionalStore};
use crate::{Fingerprint, RecordKey};

/// The number of an advisory lock. PostgreSQL has two spaces of them for the whole database, of 64 bits each: two that meet
/// by chance cost a refusal, never a second execution.
pub(super) fn lock(purpose: &[u8], parts: &[&[u8]]) -> i64 {
    let mut digest = Sha256::new_with_prefix("idempotent-runtime");
    for part in std::iter::once(&purpose).chain(parts) {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let digest: [u8; 32] = digest.finalize().into();
    i64::from_le_bytes(digest[..8].try_into().expect("eight bytes"))
}

impl PostgresStore {
    pub(super) fn lock_of_key(&self, key: &RecordKey) -> i64 {
        lock(b"key", &[self.0.schema.as_bytes(), key.as_str().as_bytes()])
    }

    /// One half tells the key, the other one what is asked for under it.
    pub(super) fn lock_of_request(&self, key: &RecordKey, fingerprint: Fingerprint) -> (i32, i32) {
        let half = |lock: i64| *lock.to_le_bytes().first_chunk().expect("four of eight bytes");
        let requests = lock(b"requests", &[self.0.schema.as_bytes(), key.as_str().as_bytes()]);
        let asked_for = lock(b"fingerprint", &[fingerprint.as_bytes()]);
        (i32::from_le_bytes(half(requests)), i32::from_le_bytes(half(asked_for)))
    }

    async fn standing<'c>(
        &self,
        executor: impl PgExecutor<'c>,
        key: &RecordKey,
    ) -> Result<Option<Standing>, StoreError> {
        let row = self.0.statements.standing.query().bind(digest(key)).fetch_optional(executor).await;
        row.map_err(store_error)?.as_ref().map(Standing::from_row).transpose()
    }
}

impl TransactionalStore<Postgres> for PostgresStore {
    fn begin(&self) -> BoxFuture<'_, Result<Open<Postgres>, StoreError>> {
        Box::pin(async move {
            let transaction = self.0.pools.begin().await?;
            Ok(Open { transaction, hold: Box::new(()) })
        })
    }

    fn claim<'a>(
        &'a self,
        key: &'a RecordKey,
        request: ClaimRequest,
    ) -> BoxFuture<'a, Result<TransactionClaim<Postgres>, StoreError>> {
        Box::pin(async move {
            let in_flight = |fingerprint| Ok(TransactionClaim::Standing(Claim::InFlight { fingerprint }));
            if let Some(fingerprint) = self.0.running.fingerprint(key) {
                return in_flight(fingerprint);
            }
            match judge(self.standing(self.0.pools.own(), key).await?, &request) {
                Verdict::Answer(claim) => return Ok(TransactionClaim::Standing(claim)),
                Verdict::Keep { token, fingerprint } => {
                    return self.keep(key, token, fingerprint).await.map(TransactionClaim::Standing);
                }
                Verdict::Take { .. } => {}
            }
            let running = match self.0.running.enter(key, request.fingerprint) {
                Ok(running) => running,
                Err(fingerprint) => return in_flight(fingerprint),
            };
            let mut transaction = self.0.pools.begin().await?;
            let (requests, asked_for) = self.lock_of_request(key, request.fingerprint);
            let lock_of_key = self.lock_of_key(key);
            let try_locks = sqlx::query_scalar(LOCK).bind(requests).bind(asked_for).bind(lock_of_key);
            let locked: String = try_locks.fetch_one(&mut *transaction).await.map_err(store_error)?;
            match locked.as_str() {
                "acquired" => {}
                "same" => return in_flight(request.fingerprint),
                _ => {
                    let compare =
                        sqlx::query_scalar(HOLDS_ANOTHER_REQUEST).bind(requests).bind(asked_for).bind(lock_of_key);
                    let is_another: bool = compare.fetch_one(&mut *transaction).await.map_err(store_error)?;
                    return Ok(TransactionClaim::Standing(held_in_transaction(request.fingerprint, is_another)));
                }
            }
            // Again, in a statement that begins under the locks: whoever held them may have recorded meanwhile.
            match judge(self.standing(&mut *transaction, key).await?, &request) {
                Verdict::Answer(claim) => Ok(TransactionClaim::Standing(claim)),
                Verdict::Keep { token, fingerprint } => {
                    self.keep(key, token, fingerprint).await.map(TransactionClaim::Standing)
                }
                Verdict::Take { attempt } => {
                    self.0.sweeper.start();
                    let open = Open { transaction, hold: Box::new(running) };
                    Ok(TransactionClaim::Acquired { attempt, open })
                }
            }
        })
    }

    fn verify<'a>(&'a self, open: &'a mut Open<Postgres>) -> BoxFuture<'a, Result<(), StoreError>> {
        // COMMIT would answer ROLLBACK, which is no error.
        Box::pin(async move {
            sqlx::query("SELECT 1").execute(&mut *open.transaction).await.map(drop).map_err(in_transaction)
        })
    }

    fn record<'a>(
        &'a self,
        open: &'a mut Open<Postgres>,
        recording: &'a Recording,
    ) -> BoxFuture<'a, Result<Held, StoreError>> {
        Box::pin(async move {
            let Recording { key, request, record, may_be_awaited } = recording;
            let row = self
                .0
                .statements
                .record
                .query()
                .bind(digest(key))
                .bind(key.as_str())
                .bind(record.fingerprint.to_string())
                .bind(token_text(request.token))
                .bind(span_millis(request.ttl))
                .bind(unix_millis(record.recorded_at))
                .bind(i32::from(record.status.as_u16()))
                .bind(headers_text(record)?)
                .bind(record.body_bytes().map(AsRef::<[u8]>::as_ref))
                .bind(request.after_crash == AfterCrash::Rerun)
                .bind(self.0.listener.channel())
                .bind(may_be_awaited)
                .fetch_optional(&mut *open.transaction)
                .await;
            Ok(held(row.map_err(in_transaction)?.as_ref()))
        })
    }

    fn is_recorded<'a>(&'a self, key: &'a RecordKey, token: Token) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            let mut transaction = self.0.pools.begin().await?;
            let has_ended: bool = sqlx::query_scalar(TRY_LOCK)
                .bind(self.lock_of_key(key))
                .fetch_one(&mut *transaction)
                .await
                .map_err(store_error)?;
            if !has_ended {
                return Err(StoreError::unavailable("the transaction has not ended yet"));
            }
            let query = self.0.statements.completed_by.query().bind(digest(key)).bind(token_text(token));
            let row = query.fetch_one(&mut *transaction).await.map_err(store_error)?;
            sqlx::Row::try_get(&row, 0).map_err(store_error)
        })
    }
}

fn in_transaction(error: sqlx::Error) -> StoreError {
    if is_aborted(&error) { StoreError::unavailable(Aborted) } else { store_error(error) }
}
