//! The completion of a claim: together with others that wait, or in a script of its own.

use std::sync::Arc;
use std::time::Duration;

use crate::key::RecordKey;
use crate::record::Record;
use crate::store::batch::queue::Outcome;
use crate::store::claim::Token;
use crate::store::error::StoreError;
use crate::store::redis::batched::LARGEST;
use crate::store::redis::batched_completion::BatchedCompletion;
use crate::store::redis::connection::Argument;
use crate::store::redis::inner::Inner;
use crate::store::redis::record_limit;

/// Turns the claim of the token into its record. Returns the answer of the script.
pub(super) async fn complete(
    inner: &Inner,
    key: &RecordKey,
    token: Token,
    record: &Record,
    ttl: Duration,
) -> Result<u32, StoreError> {
    let (value, name) = (record_limit::value_of(inner, token, record)?, inner.name(key));
    let message = Inner::message_of(&name);
    let completion = Arc::new(BatchedCompletion { name, value, ttl, message });
    let mut lead = None;
    if inner.acknowledged.is_none() && !inner.is_cluster() && completion.bytes() <= LARGEST {
        match inner.completing.submit(&completion, None).await? {
            Outcome::Answered(answer) => return Ok(answer),
            Outcome::Lost(error) => return Err(inner.error(Arc::unwrap_or_clone(error))),
            Outcome::Alone(own) => lead = own,
        }
    }
    let name = [&completion.name[..]];
    let claims = inner.claims_of(&completion.name);
    let mut arguments = [&inner.channel, &inner.index, claims, &completion.message].map(Argument::Text).to_vec();
    arguments.extend(completion.arguments());
    let answer = record_limit::write(inner, &inner.scripts.complete, &name, key, &completion.value, &arguments).await;
    // Kept until the completion is answered, so that others gather in the meantime.
    drop(lead);
    answer
}
