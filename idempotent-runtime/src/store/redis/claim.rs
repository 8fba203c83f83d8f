//! The first claim of a key by `SET`: together with other claims that wait, or in a command of its own.

use std::sync::Arc;

use crate::key::RecordKey;
use crate::store::batch::queue::Outcome;
use crate::store::claim::ClaimRequest;
use crate::store::error::StoreError;
use crate::store::line::Call;
use crate::store::redis::batched::LARGEST;
use crate::store::redis::batched_claim::BatchedClaim;
use crate::store::redis::index;
use crate::store::redis::inner::Inner;
use crate::store::redis::value;

/// Makes the first claim of the key, or returns the existing value. One command is faster than a script.
pub(super) async fn claim_by_set(
    inner: &Inner,
    key: &RecordKey,
    request: &ClaimRequest,
) -> Result<Option<Vec<u8>>, StoreError> {
    let value = value::claimed(request);
    let claim = Arc::new(BatchedClaim { name: inner.name(key), value, ttl: request.ttl });
    let pipeline = &inner.claiming.sending().0;
    let (mut lead, mut lost) = (None, None);
    if !inner.is_cluster() && claim.name.len() <= LARGEST && pipeline.expected() <= LARGEST {
        let call = Call::hold_back_current();
        match inner.claiming.submit(&claim, call.clone()).await? {
            // The batch has sent the name to the index.
            Outcome::Answered(existing) => return Ok(existing),
            // The batch may have had its effect. A claim that is sent again recognises its own value.
            Outcome::Lost(error) if inner.connection.may_repeat(&error) => lost = Some(error),
            Outcome::Lost(error) => return Err(inner.error(Arc::unwrap_or_clone(error))),
            Outcome::Alone(own) => lead = own,
        }
        if let Some(call) = call {
            call.send();
        }
    }
    let answer = inner.connection.query(&claim.command()).await;
    // Kept until the claim is answered, so that other claims gather in the meantime.
    drop(lead);
    // The first error counts: the lost batch may have made the claim, whatever the answer to the second try.
    let answer = answer.map_err(|error| inner.error(lost.map_or(error, Arc::unwrap_or_clone)))?;
    let existing = claim.existing(answer);
    pipeline.expect(existing.as_ref().map_or(0, Vec::len));
    if existing.is_none() {
        index::enter_expiring(inner, &claim.name, request.ttl).await;
    }
    Ok(existing)
}
