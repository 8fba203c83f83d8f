//! The claim and the record of a handler that runs in a transaction.

use futures_util::future::BoxFuture;
use sqlx::sqlite::Sqlite;

use crate::key::RecordKey;
use crate::policy::values::Isolation;
use crate::record::unix_millis;
use crate::store::claim::{Claim, Held, Token};
use crate::store::claim_decision::{Decision, decide};
use crate::store::columns::{span_millis, token_text};
use crate::store::error::StoreError;
use crate::store::row::headers_text;
use crate::store::sqlite::bound::{counted_bytes, counted_owner};
use crate::store::sqlite::failure::{Failure, store_error};
use crate::store::sqlite::locked::{Decided, decide_claim, keep};
use crate::store::sqlite::schema;
use crate::store::sqlite::store::SqliteStore;
use crate::transaction::open::Open;
use crate::transaction::slot::{ClaimInTransaction, TransactionalStore};
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
            // An expired lease is decided under the lock, as without a transaction.
            if let Decision::Answer(claim) = decide(self.existing(key).await?, &request)
                && !matches!(claim, Claim::Lapsed { .. })
            {
                return Ok(ClaimInTransaction::Existing(claim));
            }
            let running = match transactions.running.begin(key, request.fingerprint) {
                Ok(running) => running.claimed(),
                Err(fingerprint) => return in_flight(fingerprint),
            };
            let mut open = transactions.begin().await?;
            // The decision is made again under the write lock, because another process may have recorded meanwhile.
            let context = self.0.context();
            let decided = decide_claim(&mut open, context, key, &request, None).await;
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
            if is_fresh && let Some(bound) = self.0.options.bound() {
                bound.admit(&mut open, context, key, &request).await.map_err(Failure::into_error)?;
            }
            Ok(ClaimInTransaction::Acquired { attempt, open: open.holding(running) })
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

impl SqliteStore {
    /// Writes the record of a transaction. With an attempt, it replaces the existing row.
    async fn write(
        &self,
        open: &mut Open<Sqlite>,
        recording: &Recording,
        attempt: Option<u32>,
    ) -> Result<bool, StoreError> {
        let Recording { key, request, record, .. } = recording;
        let headers = headers_text(record)?;
        let written = schema::at(self.0.clock.now(), schema::RECORD)
            .bind(key.as_str())
            .bind(record.fingerprint.to_string())
            .bind(token_text(request.token))
            .bind(span_millis(request.ttl))
            .bind(unix_millis(record.recorded_at))
            .bind(record.status.as_u16())
            .bind(&headers)
            .bind(record.body_bytes().map(AsRef::<[u8]>::as_ref))
            .bind(attempt)
            .bind(self.0.clock.after(request.ttl))
            .bind(counted_owner(self.0.options.bound(), request))
            .bind(counted_bytes(key, Some((&headers, record))))
            .execute(&mut **open)
            .await;
        Ok(written.map_err(store_error)?.rows_affected() > 0)
    }
}
