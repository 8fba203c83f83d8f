//! From the outcome of a handler that runs in a transaction to its commit or its end without a trace.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::response::Response;
use futures_util::FutureExt;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{Instrument, Span};

use super::claim::UNAVAILABLE;
use super::verdict::{Judge, Panic, Verdict, of_another_guard};
use crate::crowding::Place;
use crate::idempotency::Holding;
use crate::metering::InFlight;
use crate::policy;
use crate::store::{BoundedStore, ClaimRequest, StoreError};
use crate::sync::tokio::time::Instant;
use crate::telemetry::{self, Outcome};
use crate::transaction::{Aborted, HandlerTransaction, Recording, TransactionError};
use crate::{RecordKey, Registry};

/// A handler that runs in a transaction.
pub(super) struct InTransaction {
    pub(super) registry: Registry,
    pub(super) store: BoundedStore,
    pub(super) transaction: Arc<dyn HandlerTransaction>,
    /// `None` for a request without a key, of which nothing is recorded.
    pub(super) claim: Option<TransactionClaim>,
    pub(super) judge: Judge,
    pub(super) span: Span,
    /// A drain waits for it.
    pub(super) _running: Option<TaskTrackerToken>,
    /// Until it is settled, what is forwarded runs under its claim.
    pub(super) _holding: Holding,
    pub(super) _place: Option<Place>,
    pub(super) _in_flight: InFlight,
}

pub(super) struct TransactionClaim {
    pub(super) key: RecordKey,
    pub(super) request: ClaimRequest,
}

impl InTransaction {
    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// Ends the transaction, and only then lets the response go.
    pub(super) async fn settle(self: Box<Self>, ran: Result<Response, Panic>) -> Response {
        let span = self.span.clone();
        self.settle_in_span(ran).instrument(span).await
    }

    async fn settle_in_span(mut self: Box<Self>, ran: Result<Response, Panic>) -> Response {
        let judged = match &self.claim {
            Some(_) => match ran {
                Ok(response) => self.judge.judge(response).await,
                Err(panic) => Err(panic),
            },
            None => self.judge_without_key(ran).await,
        };
        let (response, verdict, outcome) = match judged {
            Ok(judged) => judged,
            Err(panic) => {
                self.roll_back(Outcome::Panicked).await;
                std::panic::resume_unwind(panic)
            }
        };
        let claim = self.claim.take();
        let recording = match (verdict, &claim) {
            (Verdict::Free | Verdict::Failed, _) => {
                // The answer tells of an error by which nothing is known of the request: its retry may succeed at once.
                if self.transaction.met_a_conflict(&self.store, response.status().is_server_error()).await {
                    self.transaction.roll_back(&self.store).await;
                    self.ring(claim.as_ref());
                    return self.refuse(&TransactionError::Conflict(StoreError::unavailable(Aborted)));
                }
                self.roll_back(outcome).await;
                self.ring(claim.as_ref());
                return response;
            }
            // What the handler did stands, and its retry may do it again.
            (Verdict::Rerun, _) | (Verdict::Record(_), None) => None,
            (Verdict::Record(record), Some(TransactionClaim { key, request })) => {
                let may_be_awaited = matches!(self.judge.policy.in_flight, policy::InFlight::Wait(_));
                let record = self.registry.at_rest().seal(key, record);
                Some(Recording { key: key.clone(), request: *request, record, may_be_awaited })
            }
        };
        let asked_at = Instant::now();
        let committed = self.transaction.commit(&self.store, recording.as_ref()).await;
        self.ring(claim.as_ref());
        match committed {
            Ok(()) => {
                if let Some(Recording { key, request, record, .. }) = &recording {
                    self.store.keep_near(key, record, asked_at, request.ttl);
                }
                outcome.enter(&self.span, self.judge.policy);
                response
            }
            Err(error) => self.refuse(&error),
        }
    }

    /// Nothing is recorded, so the body need not be read.
    async fn judge_without_key(&self, ran: Result<Response, Panic>) -> Result<(Response, Verdict, Outcome), Panic> {
        let judge = async {
            let (parts, body) = ran?.into_parts();
            let verdict = if self.judge.admits(&parts) { Verdict::Rerun } else { Verdict::Free };
            Ok((Response::from_parts(parts, body), verdict, Outcome::Unguarded))
        };
        AssertUnwindSafe(judge).catch_unwind().await?
    }

    async fn roll_back(&self, outcome: Outcome) {
        self.transaction.roll_back(&self.store).await;
        outcome.enter(&self.span, self.judge.policy);
    }

    fn ring(&self, claim: Option<&TransactionClaim>) {
        if let Some(claim) = claim {
            self.registry.settled().ring(&claim.key);
        }
    }

    /// The handler's own response would tell of effects that are gone, or may be.
    fn refuse(&self, error: &TransactionError) -> Response {
        telemetry::transaction_failed(self.judge.policy, self.store.name(), error);
        let refusal = error.refusal(UNAVAILABLE);
        Outcome::Refused(refusal.code()).enter(&self.span, self.judge.policy);
        // Without a key nobody has taken the request over, and a refusal is never recorded.
        of_another_guard(self.registry.refuse(self.judge.policy.scope, refusal))
    }
}
