//! A claim as one of many in one statement.

use std::sync::Arc;

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::key::RecordKey;
use crate::store::claim::ClaimRequest;
use crate::store::claim_decision::{ExistingClaim, StoredState};
use crate::store::columns::{span_millis, token_text};
use crate::store::error::StoreError;
use crate::store::postgres::batched::{Batched, LARGEST, place_of};
use crate::store::postgres::row;
use crate::store::postgres::statements::Query;

pub(super) struct BatchedClaim {
    pub(super) digest: [u8; 32],
    pub(super) key: RecordKey,
    pub(super) request: ClaimRequest,
    pub(super) lock_of_key: i64,
}

impl Batched for BatchedClaim {
    /// The state of the key after the statement.
    type Answer = Result<StoredState, StoreError>;

    const IN_TURN: bool = true;

    fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    fn bytes(&self) -> usize {
        self.key.as_str().len()
    }

    fn bind(batch: &[Arc<Self>], query: Query, _: &str) -> Query {
        let requests = || batch.iter().map(|claim| &claim.request);
        query
            .bind(batch.iter().map(|claim| claim.digest).collect::<Vec<_>>())
            .bind(batch.iter().map(|claim| claim.key.as_str()).collect::<Vec<_>>())
            .bind(requests().map(|request| request.fingerprint.to_string()).collect::<Vec<_>>())
            .bind(requests().map(|request| token_text(request.token)).collect::<Vec<_>>())
            .bind(requests().map(|request| span_millis(request.ttl)).collect::<Vec<_>>())
            .bind(requests().map(|request| span_millis(request.lease)).collect::<Vec<_>>())
            .bind(requests().map(|request| request.after_crash.may_rerun()).collect::<Vec<_>>())
            .bind(batch.iter().map(|claim| claim.lock_of_key).collect::<Vec<_>>())
            .bind(requests().map(|request| request.other_fingerprint().to_string()).collect::<Vec<_>>())
            .bind(i32::try_from(LARGEST).unwrap_or(i32::MAX))
    }

    /// The state after the statement is the state for any other claim of the key. [`decide`](crate::store::claim_decision::decide)
    /// makes each claim's own answer from it.
    fn answer_of_another(answer: &Self::Answer) -> Option<Self::Answer> {
        answer.as_ref().ok().map(|state| Ok(state.clone()))
    }

    fn answers(batch: &[Arc<Self>], rows: &[PgRow]) -> Result<Vec<Option<Self::Answer>>, sqlx::Error> {
        let mut answers: Vec<Option<Self::Answer>> = batch.iter().map(|_| None).collect();
        for row in rows {
            let Some(place) = place_of(batch, row.try_get("digest")?) else { continue };
            match row::acquired(row) {
                Ok(Some(attempt)) => answers[place] = Some(Ok(batch[place].acquired(attempt))),
                Err(error) => answers[place] = Some(Err(error)),
                // A key that the statement acquired also has the row of its earlier state, which is not the answer.
                Ok(None) if answers[place].is_some() => {}
                Ok(None) => answers[place] = Some(StoredState::from_row(row)),
            }
        }
        Ok(answers)
    }
}

impl BatchedClaim {
    fn acquired(&self, attempt: u32) -> StoredState {
        let ClaimRequest { fingerprint, token, after_crash, .. } = self.request;
        let claim = ExistingClaim::new(token, fingerprint);
        StoredState::Claimed(claim.with_attempt(attempt).with_expiry(after_crash.may_rerun()))
    }
}
