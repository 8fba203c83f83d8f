//! From the outcome of a handler that runs in a transaction to its commit or its end without a trace.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::response::Response;
use futures_util::FutureExt;
use tracing::{Instrument, Span};

use crate::caller_limit::Permit;
use crate::key::RecordKey;
use crate::observe::InFlight;
use crate::observe::telemetry;
use crate::observe::telemetry::Outcome;
use crate::policy;
use crate::registry::Registry;
use crate::rejection::problem::UNAVAILABLE;
use crate::request::holding::Holding;
use crate::request::response::{Classification, Panic, ResponseClassifier};
use crate::request::response_mark::of_another_guard;
use crate::store::claim::ClaimRequest;
use crate::store::handle::StoreHandle;
use crate::sync::tokio::time::Instant;
use crate::transaction::contract::HandlerTransaction;
use crate::transaction::error::TransactionError;
use crate::transaction::transactions::Recording;

/// A handler that runs in a transaction.
pub(super) struct InTransaction {
    pub(super) registry: Registry,
    pub(super) store: StoreHandle,
    pub(super) transaction: Arc<dyn HandlerTransaction>,
    /// `None` for a request without a key, of which nothing is recorded.
    pub(super) claim: Option<TransactionClaim>,
    pub(super) classifier: ResponseClassifier,
    pub(super) span: Span,
    /// Until it is settled, what is forwarded runs under its claim.
    pub(super) holding: Holding,
    pub(super) _permit: Option<Permit>,
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
        let classified = match &self.claim {
            Some(_) => match ran {
                Ok(response) => self.classifier.classify(response, &self.holding).await,
                Err(panic) => Err(panic),
            },
            None => self.classify_without_key(ran).await,
        };
        // Its body may have driven what runs beneath it. From here on nothing begins beneath it.
        self.holding.covered_runs().until_closed_to_handlers().await;
        let (response, classification, outcome) = match classified {
            Ok(classified) => classified,
            Err(panic) => {
                let _ = self.transaction.roll_back(&self.store).await;
                Outcome::Panicked.enter(&self.span, &self.classifier.policy);
                std::panic::resume_unwind(panic)
            }
        };
        let claim = self.claim.take();
        let recording = match (classification, &claim) {
            (Classification::Free | Classification::Failed, _) => {
                // The answer tells of an error by which nothing is known of the request: its retry may succeed at once.
                let is_failure = response.status().is_server_error();
                let conflict = self.transaction.conflict(&self.store, is_failure).await;
                let rolled_back = self.transaction.roll_back(&self.store).await;
                self.notify(claim.as_ref());
                return match rolled_back.and(conflict.map_or(Ok(()), Err)) {
                    Ok(()) => {
                        outcome.enter(&self.span, &self.classifier.policy);
                        response
                    }
                    Err(error) => self.reject(&error),
                };
            }
            // The handler's changes are committed, and a retry may make them again.
            (Classification::Rerun, _) | (Classification::Record(_), None) => None,
            (Classification::Record(record), Some(TransactionClaim { key, request })) => {
                let may_be_awaited = matches!(self.classifier.policy.in_flight(), policy::values::InFlight::Wait(_));
                let record = self.registry.at_rest().seal(key, record);
                Some(Recording { key: key.clone(), request: *request, record, may_be_awaited })
            }
        };
        let asked_at = Instant::now();
        let committed = self.transaction.commit(&self.store, recording.as_ref()).await;
        self.notify(claim.as_ref());
        match committed {
            Ok(()) => {
                if let Some(Recording { key, request, record, .. }) = &recording {
                    self.store.cache(key, record, asked_at, request.ttl);
                }
                outcome.enter(&self.span, &self.classifier.policy);
                response
            }
            Err(error) => self.reject(&error),
        }
    }

    /// Nothing is recorded, so the body need not be read.
    async fn classify_without_key(
        &self,
        ran: Result<Response, Panic>,
    ) -> Result<(Response, Classification, Outcome), Panic> {
        let classify = async {
            let (parts, body) = ran?.into_parts();
            let classification =
                if self.classifier.admits(&parts) { Classification::Rerun } else { Classification::Free };
            Ok((Response::from_parts(parts, body), classification, Outcome::Unguarded))
        };
        AssertUnwindSafe(classify).catch_unwind().await?
    }

    fn notify(&self, claim: Option<&TransactionClaim>) {
        if let Some(claim) = claim {
            self.registry.ended_claims().notify(&claim.key);
        }
    }

    /// The handler's own response would tell of effects that are gone, or may be.
    fn reject(&self, error: &TransactionError) -> Response {
        telemetry::transaction_failed(&self.classifier.policy, self.store.name(), error);
        let rejection = error.rejection(UNAVAILABLE);
        Outcome::Rejected(rejection.code()).enter(&self.span, &self.classifier.policy);
        let response = self.registry.reject(self.classifier.policy.scope(), rejection);
        // A request without a key has taken over nothing, and a layer around it must not record a rejection.
        if self.holding.is_beneath_a_guard() { of_another_guard(response) } else { response }
    }
}
