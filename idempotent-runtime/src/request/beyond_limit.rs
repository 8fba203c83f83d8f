//! Requests beyond a limit: they get the response that their key already has, and never run.

use axum::response::Response;
use tracing::Instrument;

use crate::observe::telemetry;
use crate::policy::values::InFlight;
use crate::rejection::problem::{IN_FLIGHT, Rejection, UNAVAILABLE};
use crate::request::handler_run::{ClaimOutcome, HandlerRun};
use crate::request::keyed_request::KeyedRequest;
use crate::store::entry::{Entry, EntryState};
use crate::store::error::StoreError;

/// The state of the key before such a request claims it.
enum Known {
    /// The store has an entry that a claim returns without creating a new one.
    Entry,
    RunsInTransaction,
    Nothing,
}

impl KeyedRequest {
    /// Returns the response of the key, or `rejection` if the request would run.
    pub(super) fn answer_or_reject(self, rejection: Rejection) -> ClaimOutcome {
        let span = self.admission.span.clone();
        ClaimOutcome::Later(Box::pin(self.answer_or(rejection).instrument(span)))
    }

    async fn answer_or(self, rejection: Rejection) -> Result<HandlerRun, Response> {
        if self.running_here().is_some() {
            return self.ask_store().await;
        }
        match self.known().await {
            Ok(Known::Entry) => self.ask_store().await,
            Ok(Known::RunsInTransaction) => Err(match self.admission.policy.in_flight() {
                InFlight::Reject => self.admission.reject(IN_FLIGHT),
                InFlight::Wait(limit) => self.wait(limit).await,
            }),
            Ok(Known::Nothing) => Err(self.admission.reject(rejection)),
            Err(error) => {
                telemetry::claim_failed(&self.admission.policy, self.store.name(), &error);
                Err(self.admission.reject(UNAVAILABLE))
            }
        }
    }

    async fn known(&self) -> Result<Known, StoreError> {
        let would_run = |entry: &Entry| match entry.state {
            EntryState::Completed { .. } | EntryState::Claimed { lease: Some(_), .. } => false,
            _ => self.admission.policy.after_crash().may_rerun(),
        };
        if self.store.get(&self.stored_key).await?.is_some_and(|entry| !would_run(&entry)) {
            return Ok(Known::Entry);
        }
        let is_in_transaction =
            self.store.transactions().is_some() && self.store.is_in_transaction(&self.stored_key).await?;
        Ok(if is_in_transaction { Known::RunsInTransaction } else { Known::Nothing })
    }
}
