//! How a claim ends: in one statement with other claims that end at the same time, or in a statement of its own.

use std::sync::Arc;

use sqlx::Row as _;

use crate::record::unix_millis;
use crate::store::batch::batcher::Batcher;
use crate::store::batch::queue::{Lead, Outcome};
use crate::store::claim::Held;
use crate::store::columns::span_millis;
use crate::store::error::StoreError;
use crate::store::given_back::REMEMBERED;
use crate::store::postgres::batched::{Batched, InStatement, LARGEST, Session};
use crate::store::postgres::batched_end::{BatchedCompletion, BatchedRelease};
use crate::store::postgres::failure::{is_lost, is_read_only, lost_error, record_error, store_error};
use crate::store::postgres::inner::Inner;
use crate::store::postgres::retry::{retried, retried_after};
use crate::store::postgres::statements::Query;

/// Turns a claim into its record.
pub(super) async fn complete(inner: &Inner, completion: BatchedCompletion) -> Result<Held, StoreError> {
    let completion = Arc::new(completion);
    let BatchedCompletion { digest, token, ttl, headers, record } = &*completion;
    let complete = || {
        let query = inner.statements.complete.query().bind(digest).bind(token).bind(ttl);
        let query = query.bind(record.fingerprint.to_string()).bind(unix_millis(record.recorded_at));
        let query = query.bind(completion.status()).bind(headers).bind(completion.body());
        query.bind(inner.listener.channel())
    };
    if held(inner, &inner.completions, &completion, complete).await.map_err(record_error)? == Held::Yes {
        return Ok(Held::Yes);
    }
    // The call may have been repeated. If the first call committed while this one waited for the row, only a new statement sees
    // that, because the snapshot of this statement is older.
    let completed_by =
        || async { inner.statements.completed_by.query().bind(digest).bind(token).fetch_one(inner.pools.own()).await };
    let is_completed: bool = retried(completed_by).await?.try_get(0).map_err(store_error)?;
    Ok(Held::of(is_completed))
}

/// Ends a claim. Its key then has no entry.
pub(super) async fn release(inner: &Inner, released: BatchedRelease) -> Result<Held, StoreError> {
    let released = Arc::new(released);
    let BatchedRelease { digest, token } = &*released;
    let release = || {
        let query = inner.statements.release.query().bind(digest).bind(token);
        query.bind(inner.listener.channel()).bind("release")
    };
    if held(inner, &inner.releases, &released, release).await? == Held::Yes {
        return Ok(Held::Yes);
    }
    let give_back = || async {
        let query = inner.statements.give_back.query().bind(digest).bind(token).bind(span_millis(REMEMBERED));
        query.bind("give back").execute(inner.pools.own()).await
    };
    if retried(give_back).await?.rows_affected() > 0 {
        return Ok(Held::No);
    }
    // The claim has arrived in the meantime, so this release finds it.
    alone(inner, None, is_lost, release).await
}

/// Sends the operation together with others that wait, or sends `query` alone. `query` returns a row if it took effect.
async fn held<B: Batched>(
    inner: &Inner,
    batcher: &Arc<Batcher<InStatement<B>>>,
    operation: &Arc<B>,
    query: impl Fn() -> Query,
) -> Result<Held, StoreError> {
    if operation.bytes() > LARGEST {
        return alone(inner, None, is_lost, query).await;
    }
    match batcher.submit(operation, None).await? {
        Outcome::Answered(_) => Ok(Held::Yes),
        Outcome::Alone(lead) => alone(inner, lead, is_lost, query).await,
        Outcome::Lost(error) if is_lost(&error) || is_read_only(&error) => alone(inner, None, |_| false, query).await,
        Outcome::Lost(error) => Err(lost_error(error)),
    }
}

/// Sends `query` in a statement of its own, first over the connection of `lead` if there is one.
async fn alone(
    inner: &Inner,
    mut lead: Option<Lead<Session>>,
    may_be_sent_again: fn(&sqlx::Error) -> bool,
    query: impl Fn() -> Query,
) -> Result<Held, StoreError> {
    let send = || {
        let (lead, query) = (lead.take(), query());
        async move {
            match lead {
                // Kept until the statement is answered, so that other operations gather in the meantime.
                Some(mut lead) => lead.session.connection.fetch_optional(query).await,
                None => query.fetch_optional(inner.pools.own()).await,
            }
        }
    };
    Ok(Held::of(retried_after(may_be_sent_again, send).await?.is_some()))
}
