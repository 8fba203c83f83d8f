//! A claim: in one statement with other claims that wait, or in a statement of its own. The latter is sent again while other claims
//! of the same key conflict with it.

use std::sync::Arc;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::policy::values::AfterCrash;
use crate::store::batch::queue::{Lead, Outcome};
use crate::store::claim::{Claim, ClaimRequest, Token};
use crate::store::claim_decision::{Decision, StoredState, decide};
use crate::store::columns::{span_millis, token_text};
use crate::store::error::StoreError;
use crate::store::given_back::given_back;
use crate::store::line::Call;
use crate::store::postgres::batched::{LARGEST, Session};
use crate::store::postgres::batched_claim::BatchedClaim;
use crate::store::postgres::failure::{
    claim_error, is_ended_before, is_lost, is_read_only, is_transient, lost_error, store_error,
};
use crate::store::postgres::inner::Inner;
use crate::store::postgres::retry::{ROUNDS, retried};
use crate::store::postgres::row;
use crate::store::postgres::row::{HeldInTransaction, digest};
use crate::store::postgres::statements::Query;

/// Sends the claim together with other claims that wait. Sends it alone if their statement has no answer for it.
pub(super) async fn claim(inner: &Inner, key: &RecordKey, request: &ClaimRequest) -> Result<Claim, StoreError> {
    let call = Call::hold_back();
    let claim = Alone { inner, key, request, digest: digest(key), call: &call };
    if key.as_str().len() > LARGEST {
        return claim.send(None, true).await;
    }
    let (digest, lock_of_key) = (claim.digest, inner.lock_of_key(key));
    let batched = Arc::new(BatchedClaim { digest, key: key.clone(), request: *request, lock_of_key });
    match inner.claims.submit(&batched, Some(Arc::clone(&call))).await? {
        Outcome::Answered(found) => match decide(Some(found?), request) {
            Decision::Answer(answer) => Ok(answer),
            Decision::Keep { token, fingerprint } => keep(inner, key, token, fingerprint).await,
            Decision::Take { .. } => claim.send(None, true).await,
        },
        Outcome::Alone(lead) => claim.send(lead, true).await,
        Outcome::Lost(error) if may_be_sent_again(&error, request) => claim.send(None, false).await,
        Outcome::Lost(error) => Err(lost_error(error)),
    }
}

/// A claim in a statement of its own.
struct Alone<'a> {
    inner: &'a Inner,
    key: &'a RecordKey,
    request: &'a ClaimRequest,
    digest: [u8; 32],
    call: &'a Call,
}

impl Alone<'_> {
    /// Repeats the statement until it takes effect or returns an existing row.
    async fn send(&self, lead: Option<Lead<Session>>, mut may_be_lost: bool) -> Result<Claim, StoreError> {
        let Self { inner, key, request, .. } = *self;
        // Kept until the claim is answered, so that other claims gather in the meantime.
        let mut lead = match lead {
            Some(lead) => lead,
            None => inner.claims.begin_session().await?,
        };
        self.call.send();
        // If another claim commits after the snapshot of this statement, the statement inserts no row and does not see the
        // other claim's row. The second round sees it. More rounds help a key that is claimed and released again and again.
        for _ in 0..ROUNDS {
            let row = match lead.session.connection.fetch_optional(self.query()).await {
                Ok(Some(row)) => row,
                Ok(None) => continue,
                Err(error) if is_transient(&error) => continue,
                Err(error) if may_be_lost && may_be_sent_again(&error, request) => {
                    // The most frequent cause is a connection that was idle for too long.
                    may_be_lost = false;
                    drop(lead.session.connection);
                    lead.session.connection = inner.pools.own().acquire().await.map_err(store_error)?;
                    continue;
                }
                Err(error) => return Err(claim_error(error)),
            };
            if let Some(attempt) = row::acquired(&row)? {
                return Ok(Claim::Acquired { attempt });
            }
            if let Some(holder) = row::held_by_transaction(&row)? {
                return Ok(held_in_transaction(request.fingerprint, &holder));
            }
            if row::is_given_back(&row)? {
                return Err(given_back());
            }
            match decide(Some(StoredState::from_row(&row)?), request) {
                Decision::Answer(claim) => return Ok(claim),
                Decision::Keep { token, fingerprint } => {
                    // `keep` takes a connection. If each request held two connections, all requests could wait for a second one.
                    drop(lead);
                    return keep(inner, key, token, fingerprint).await;
                }
                Decision::Take { .. } => {}
            }
        }
        Err(StoreError::busy(format!("the claim conflicted {ROUNDS} times with other claims of its key")))
    }

    fn query(&self) -> Query {
        let Self { inner, key, request, .. } = *self;
        let (requests, asked_for) = inner.lock_of_request(key, request.fingerprint);
        let query = inner.statements.claim.query().bind(self.digest).bind(key.as_str());
        let query = query.bind(request.fingerprint.to_string()).bind(token_text(request.token));
        let query = query.bind(span_millis(request.ttl)).bind(span_millis(request.lease));
        let query = query.bind(request.after_crash == AfterCrash::Rerun).bind(requests).bind(asked_for);
        query.bind(inner.lock_of_key(key)).bind(request.other_fingerprint().to_string())
    }
}

/// Makes a claim of unknown outcome permanent before a request is rejected because of it.
pub(super) async fn keep(
    inner: &Inner,
    key: &RecordKey,
    token: Token,
    fingerprint: Fingerprint,
) -> Result<Claim, StoreError> {
    let (digest, token) = (digest(key), token_text(token));
    let keep = || async { inner.statements.keep.query().bind(digest).bind(&token).execute(inner.pools.own()).await };
    let is_kept = retried(keep).await?.rows_affected() > 0;
    // Otherwise the claim was renewed, taken over or ended in the meantime. The client's next request finds out which.
    Ok(if is_kept { Claim::Lapsed { fingerprint } } else { Claim::InFlight { fingerprint } })
}

/// Returns whether a claim may be sent again at once after its connection was lost. The store recognises the claim by its token.
///
/// The lost statement may still arrive later. With [`AfterCrash::Reject`] that is dangerous: if the handler has released its
/// claim by then, the late statement makes a claim that never expires.
fn may_be_sent_again(error: &sqlx::Error, request: &ClaimRequest) -> bool {
    is_ended_before(error) || is_read_only(error) || (is_lost(error) && request.after_crash == AfterCrash::Rerun)
}

/// Returns the answer to a duplicate of a handler that runs in a transaction. The handler's lock has only some bits of its
/// fingerprint. They show which parts of the requests differ, and nothing else is needed.
pub(super) fn held_in_transaction(asked_for: Fingerprint, holder: &HeldInTransaction) -> Claim {
    let fingerprint = match holder {
        HeldInTransaction::Same => asked_for,
        HeldInTransaction::Other(bits) => asked_for.with_bits(*bits),
    };
    Claim::InFlight { fingerprint }
}
