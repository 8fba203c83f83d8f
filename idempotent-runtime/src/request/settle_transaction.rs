//! Ends the transaction of a handler: by a commit, or by a rollback that leaves nothing in the database.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::response::Response;
use futures_util::FutureExt;
use tracing::Instrument;

use crate::deadline::Deadline;
use crate::key::RecordKey;
use crate::observe::telemetry;
use crate::observe::telemetry::Outcome;
use crate::policy;
use crate::record::Record;
use crate::record::envelope::Place;
use crate::rejection::problem::{Rejection, UNAVAILABLE_AFTER_RUN};
use crate::request::guarded_run::GuardedRun;
use crate::request::respond::{Classification, Classified, Panic};
use crate::request::response_mark::of_another_guard;
use crate::store::claim::ClaimRequest;
use crate::store::handle::StoreHandle;
use crate::sync::tokio;
use crate::transaction::contract::HandlerTransaction;
use crate::transaction::error::TransactionError;
use crate::transaction::transactions::Recording;

/// A handler that runs in a transaction.
pub(super) struct InTransaction {
    pub(super) store: StoreHandle,
    pub(super) transaction: Arc<dyn HandlerTransaction>,
    /// `None` for a request without a key, for which nothing is recorded.
    pub(super) claim: Option<RecordedClaim>,
    pub(super) run: GuardedRun,
}

/// The claim that is completed with the record in the transaction.
pub(super) struct RecordedClaim {
    pub(super) key: RecordKey,
    pub(super) request: ClaimRequest,
}

impl InTransaction {
    /// Ends the transaction, and only then returns the response.
    pub(super) async fn settle(self: Box<Self>, ran: Result<Response, Panic>) -> Response {
        let span = self.run.span.clone();
        self.settle_in_span(ran).instrument(span).await
    }

    async fn settle_in_span(self: Box<Self>, ran: Result<Response, Panic>) -> Response {
        let classified = match &self.claim {
            Some(_) => match ran {
                Ok(response) => self.run.classifier.classify(response, &self.run.guard).await,
                Err(panic) => Err(panic),
            },
            None => self.classify_without_key(ran).await,
        };
        match classified {
            Ok((response, Classification::Free | Classification::Failed, outcome)) => {
                // A server error says nothing about the request itself: its retry may succeed at once.
                let is_failure = response.status().is_server_error();
                let conflict = self.transaction.conflict(&self.store, is_failure).await;
                self.roll_back(response, conflict, outcome).await
            }
            // The handler's changes are committed, and a retry may make them again.
            Ok((response, Classification::Rerun, outcome)) => self.commit(response, None, outcome).await,
            Ok((response, Classification::Record(record), outcome)) => {
                self.commit(response, Some(record), outcome).await
            }
            Err(panic) => {
                let _ = self.roll_back(Response::default(), None, Outcome::Panicked).await;
                std::panic::resume_unwind(panic)
            }
        }
    }

    /// Rolls back. It first waits for all runs beneath the guard, because another attempt would otherwise run
    /// beside them. The response does not wait for them.
    async fn roll_back(
        self: Box<Self>,
        response: Response,
        conflict: Option<TransactionError>,
        outcome: Outcome,
    ) -> Response {
        let told = conflict.map_or(Ok(()), Err);
        if self.run.guard.covered_runs().close_to_handlers() {
            let rolled_back = self.roll_back_now().await;
            return self.answer(response, rolled_back.and(told), outcome);
        }
        let answer = self.answer(response, told, outcome);
        let ending = async move {
            self.run.guard.covered_runs().until_closed_to_handlers().await;
            if let Err(error) = self.roll_back_now().await {
                telemetry::transaction_failed(&self.run.classifier.policy, self.store.name(), &error);
            }
        };
        tokio::spawn(Box::pin(ending).in_current_span());
        answer
    }

    async fn roll_back_now(&self) -> Result<(), TransactionError> {
        let rolled_back = self.transaction.roll_back(&self.store).await;
        self.notify();
        rolled_back
    }

    fn answer(&self, response: Response, ended: Result<(), TransactionError>, outcome: Outcome) -> Response {
        match ended {
            Ok(()) => {
                outcome.report(&self.run.span, &self.run.classifier.policy);
                response
            }
            Err(error) => self.reject(&error),
        }
    }

    /// Commits after the handlers that run under this claim have ended, because a commit that fails frees the key. It
    /// waits for these handlers for at most one lease.
    async fn commit(self: Box<Self>, response: Response, record: Option<Record>, outcome: Outcome) -> Response {
        let limit = Deadline::after(self.run.classifier.policy.lease());
        if limit.bound(self.run.guard.covered_runs().until_closed_to_handlers()).await.is_some() {
            return self.commit_now(response, record, outcome).await;
        }
        telemetry::commit_delayed(&self.run.classifier.policy);
        let rejection = self.render(UNAVAILABLE_AFTER_RUN);
        let committing = async move {
            self.run.guard.covered_runs().until_closed_to_handlers().await;
            self.commit_now(response, record, outcome).await;
        };
        tokio::spawn(Box::pin(committing).in_current_span());
        rejection
    }

    async fn commit_now(&self, response: Response, record: Option<Record>, outcome: Outcome) -> Response {
        let recording = record.zip(self.claim.as_ref()).map(|(record, RecordedClaim { key, request })| {
            let may_be_awaited = matches!(self.run.classifier.policy.in_flight(), policy::values::InFlight::Wait(_));
            let place = Place { store: self.store.name(), key };
            let record = self.run.registry.at_rest().seal(place, &record, Some(request.ttl)).into_owned();
            Recording { key: key.clone(), request: *request, record, may_be_awaited }
        });
        let committed = self.transaction.commit(&self.store, recording.as_ref()).await;
        self.notify();
        match committed {
            Ok(()) => {
                outcome.report(&self.run.span, &self.run.classifier.policy);
                response
            }
            Err(error) => self.reject(&error),
        }
    }

    /// Classifies the response without reading its body, because nothing is recorded.
    async fn classify_without_key(&self, ran: Result<Response, Panic>) -> Result<Classified, Panic> {
        let classify = async {
            let (mut parts, body) = ran?.into_parts();
            let is_committed = !self.run.guard.is_rejection(&mut parts) && self.run.classifier.admits(&parts);
            let classification = if is_committed { Classification::Rerun } else { Classification::Free };
            Ok((Response::from_parts(parts, body), classification, Outcome::Unguarded))
        };
        AssertUnwindSafe(classify).catch_unwind().await?
    }

    fn notify(&self) {
        if let Some(claim) = &self.claim {
            self.run.registry.ended_claims().notify(&claim.key);
        }
    }

    /// Returns a rejection in place of the handler's response, which would report effects that are undone, or may be
    /// undone.
    fn reject(&self, error: &TransactionError) -> Response {
        telemetry::transaction_failed(&self.run.classifier.policy, self.store.name(), error);
        let rejection = error.rejection(UNAVAILABLE_AFTER_RUN);
        Outcome::Rejected(rejection.code()).report(&self.run.span, &self.run.classifier.policy);
        self.render(rejection)
    }

    fn render(&self, rejection: Rejection) -> Response {
        let execution = self.run.guard.execution();
        let response = self.run.rejecter()(rejection);
        // A request without a key has not called `take_over`, but a layer around it must not record a rejection.
        if execution.around().is_some() { of_another_guard(response, execution) } else { response }
    }
}
