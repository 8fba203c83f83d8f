//! The statement that writes the record of a handler's transaction, inside the transaction or after it.

use std::sync::Arc;

use sqlx::Row as _;
use sqlx::postgres::PgExecutor;

use crate::policy::values::AfterCrash;
use crate::record::unix_millis;
use crate::store::claim::Held;
use crate::store::columns::{span_millis, token_text};
use crate::store::error::StoreError;
use crate::store::postgres::failure::{in_transaction, store_error};
use crate::store::postgres::row::digest;
use crate::store::postgres::statements::Statements;
use crate::store::row::headers_text;
use crate::transaction::transactions::Recording;

pub(super) struct RecordStatement {
    pub(super) statements: Arc<Statements>,
    /// The channel on which waiting requests of other processes are notified.
    pub(super) channel: String,
}

impl RecordStatement {
    pub(super) async fn execute<'c>(
        &self,
        executor: impl PgExecutor<'c>,
        recording: &Recording,
    ) -> Result<Held, StoreError> {
        let Recording { key, request, record, may_be_awaited } = recording;
        let query = self
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
            .bind(&self.channel)
            .bind(may_be_awaited)
            // The fingerprint of the claim that the record replaces, which may have been made with a former secret.
            .bind(request.other_fingerprint().to_string());
        let row = query.fetch_optional(executor).await.map_err(in_transaction)?;
        Ok(Held::of(row.is_some()))
    }

    /// Returns whether the key has the record of this claim.
    pub(super) async fn is_written<'c>(
        &self,
        executor: impl PgExecutor<'c>,
        Recording { key, request, .. }: &Recording,
    ) -> Result<Held, StoreError> {
        let query = self.statements.completed_by.query().bind(digest(key)).bind(token_text(request.token));
        let row = query.fetch_one(executor).await.map_err(store_error)?;
        let is_written: bool = row.try_get(0).map_err(store_error)?;
        Ok(if is_written { Held::Yes } else { Held::No })
    }
}
