//! Ends a claim as an operator decides, with one statement that also checks the token and the lease.

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::key::RecordKey;
use crate::record::unix_millis;
use crate::store::claim::Token;
use crate::store::columns::{span_millis, token_text};
use crate::store::error::StoreError;
use crate::store::postgres::failure::{is_ended_before, is_lost, record_error, store_error};
use crate::store::postgres::inner::Inner;
use crate::store::postgres::retry::{ROUNDS, retried, retried_after};
use crate::store::postgres::row::digest;
use crate::store::resolution::{Resolution, Resolved};
use crate::store::row::headers_text;

/// Repeats the statement if the claim changed while the statement waited for the row. Only a new snapshot shows the new state.
pub(super) async fn resolve(
    inner: &Inner,
    key: &RecordKey,
    token: Token,
    resolution: &Resolution,
) -> Result<Resolved, StoreError> {
    for _ in 0..ROUNDS {
        let Some(row) = try_to_resolve(inner, key, token, resolution).await? else {
            return recognise(inner, key, resolution).await;
        };
        if row.try_get("resolved").map_err(store_error)? {
            return Ok(Resolved::Yes);
        }
        if row.try_get("leased").map_err(store_error)? {
            return Ok(Resolved::StillRunning);
        }
    }
    Err(StoreError::unavailable(format!("the claim changed during each of {ROUNDS} tries to resolve it")))
}

async fn try_to_resolve(
    inner: &Inner,
    key: &RecordKey,
    token: Token,
    resolution: &Resolution,
) -> Result<Option<PgRow>, StoreError> {
    let (digest, token, channel) = (digest(key), token_text(token), inner.listener.channel());
    let statements = &inner.statements;
    match resolution {
        Resolution::Executed { token: own, record, ttl } => {
            let headers = headers_text(record)?;
            let resolve = || async {
                let query = statements.resolve_executed.query().bind(digest).bind(&token).bind(channel);
                let query = query.bind(token_text(*own)).bind(span_millis(*ttl)).bind(record.fingerprint.to_string());
                let query = query.bind(unix_millis(record.recorded_at)).bind(i32::from(record.status.as_u16()));
                let query = query.bind(&headers).bind(record.body_bytes().map(|body| body.to_vec())).bind("resolve");
                query.fetch_optional(inner.pools.own()).await
            };
            retried_after(is_lost, resolve).await.map_err(record_error)
        }
        Resolution::NotExecuted => {
            let resolve = || async {
                let query = statements.resolve_not_executed.query().bind(digest).bind(&token).bind(channel);
                query.bind("resolve as not executed").fetch_optional(inner.pools.own()).await
            };
            // If the first statement took effect, a second one would find nothing and report that another operator was faster.
            retried_after(is_ended_before, resolve).await
        }
    }
}

/// Returns whether an earlier attempt took effect although its answer was lost.
async fn recognise(inner: &Inner, key: &RecordKey, resolution: &Resolution) -> Result<Resolved, StoreError> {
    let Resolution::Executed { token, .. } = resolution else { return Ok(Resolved::ChangedHands) };
    let (digest, token) = (digest(key), token_text(*token));
    let completed_by =
        || async { inner.statements.completed_by.query().bind(digest).bind(&token).fetch_one(inner.pools.own()).await };
    let is_ours: bool = retried(completed_by).await?.try_get(0).map_err(store_error)?;
    Ok(if is_ours { Resolved::Yes } else { Resolved::ChangedHands })
}
