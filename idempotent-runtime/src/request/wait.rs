//! Duplicates that wait for the request that runs (`in_flight = wait`). A waiting request never executes the handler.
//! It polls the store by reads. It sends a claim only to fetch a record, or in a transaction that is rolled back.
//!
//! All requests of one runtime that wait for one key share the polls of the store, so a thousand waiting requests cost
//! as much as one. Requests in different runtimes share nothing, because the polls would end with their runtime, or
//! stop when no thread drives that runtime.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use futures_util::FutureExt;

use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::key::RecordKey;
use crate::observe::telemetry;
use crate::policy::handle::PolicyHandle;
use crate::record::envelope::Place;
use crate::registry::Registry;
use crate::registry::watches::{RequestEnd, Watched};
use crate::rejection::problem::{IN_FLIGHT, RETRY_AFTER, Rejection, UNAVAILABLE};
use crate::request::keyed_request::KeyedRequest;
use crate::store::claim::{Claim, ClaimRequest, Token};
use crate::store::entry::EntryState;
use crate::store::error::StoreError;
use crate::store::handle::StoreHandle;
use crate::sync::tokio::time::Instant;
use crate::sync::{current_runtime, tokio};
use crate::transaction::contract::HandlerTransaction;
use crate::transaction::transactions::TxClaimRequest;

impl KeyedRequest {
    /// Waits for the end of the request that runs. Returns its response, or a rejection that says why there is none.
    pub(super) async fn wait(mut self, limit: Duration) -> Response {
        // A waiting request executes nothing, so a drain does not wait for it.
        self.running = None;
        self.permits.running = None;
        let detach_state = &self.admission.execution.run.detach_state;
        if detach_state.is_abandoned() {
            // The client disconnected while the store was answering the claim.
            return self.admission.reject(IN_FLIGHT);
        }
        detach_state.set_must_finish(false);
        let watch = Watch {
            policy: self.admission.policy.clone(),
            registry: self.registry.clone(),
            store: self.store.clone(),
            key: self.stored_key.clone(),
            request: self.request,
            transaction: self.admission.transaction.clone(),
        };
        match watch.end_within(limit).await {
            Some(RequestEnd::Recorded(record)) => self.completed(record),
            Some(RequestEnd::Lapsed) if !self.admission.policy.after_crash().may_rerun() => {
                self.admission.reject(Rejection::OutcomeUnknown)
            }
            Some(RequestEnd::Gone | RequestEnd::Lapsed) => {
                self.admission.reject(Rejection::NotRecorded { retry_after: RETRY_AFTER })
            }
            Some(RequestEnd::Rejected(rejection)) => self.admission.reject(rejection),
            None => self.admission.reject(IN_FLIGHT),
        }
    }
}

/// The data that a check of the store needs.
#[derive(Clone)]
pub(super) struct Watch {
    pub(super) policy: PolicyHandle,
    pub(super) registry: Registry,
    pub(super) store: StoreHandle,
    pub(super) key: RecordKey,
    pub(super) request: ClaimRequest,
    pub(super) transaction: Option<Arc<dyn HandlerTransaction>>,
}

impl Watch {
    /// Returns how the request that runs has ended. Returns `None` if that request takes longer than `limit`.
    pub(super) async fn end_within(&self, limit: Duration) -> Option<RequestEnd> {
        let watched = self.watched();
        let ended = self.registry.watches().end_of(&watched, || self.clone().until_ended().boxed());
        Deadline::after(limit).bound(ended).await
    }

    fn watched(&self) -> Watched {
        (self.store.address(), self.key.clone(), self.transaction.is_some(), current_runtime())
    }

    /// Polls the store until the request has ended. Returns how the request has ended, and when the check began that
    /// found the end.
    async fn until_ended(self) -> (Instant, RequestEnd) {
        // Polling is needed although waiting requests are notified: a store need not notify about claims that end in
        // other processes.
        let mut backoff = Backoff::BETWEEN_CHECKS;
        loop {
            // The notification is subscribed before the check. Otherwise, an end between the check and the wait would
            // be missed.
            let mut changed = pin!(self.changed().fuse());
            let _ = changed.as_mut().now_or_never();
            let checked_at = Instant::now();
            let ended = match &self.transaction {
                None => self.check().await,
                Some(transaction) => self.check_in_transaction(&**transaction).await,
            };
            if let Some(ended) = ended {
                return (checked_at, ended);
            }
            tokio::select! {
                () = changed => {}
                () = backoff.wait() => {}
            }
        }
    }

    /// Resolves when the entry of the key may have changed since the first poll.
    async fn changed(&self) {
        tokio::select! {
            () = self.registry.ended_claims().notified(&self.key) => {}
            () = self.store.changed(&self.key) => {}
        }
    }

    /// Returns `None` while the other request runs.
    async fn check(&self) -> Option<RequestEnd> {
        let ended = self.find().await?;
        if !matches!(ended, RequestEnd::Gone | RequestEnd::Lapsed) || self.store.transactions().is_none() {
            return Some(ended);
        }
        // Another version of the program may run the request in a transaction.
        match self.store.is_in_transaction(&self.key).await {
            Ok(true) => None,
            // The transaction may have been committed since the first read.
            Ok(false) => self.find().await,
            Err(error) => {
                telemetry::claim_failed(&self.policy, self.store.name(), &error);
                Some(RequestEnd::Rejected(UNAVAILABLE))
            }
        }
    }

    /// Reads the entry of the key, without transactions in progress. Returns `None` while the other request runs.
    async fn find(&self) -> Option<RequestEnd> {
        let entry = match self.store.get(&self.key).await {
            Ok(entry) => entry,
            Err(error) => {
                telemetry::claim_failed(&self.policy, self.store.name(), &error);
                return Some(RequestEnd::Rejected(UNAVAILABLE));
            }
        };
        match entry.map(|entry| entry.state) {
            Some(EntryState::Completed { .. }) => self.fetch().await,
            Some(EntryState::Claimed { lease: Some(_), .. }) => None,
            // Even if the store has forgotten the claim, a handler that runs in this process has not ended.
            Some(_) => (!self.runs_here()).then_some(RequestEnd::Lapsed),
            None => (!self.runs_here()).then_some(RequestEnd::Gone),
        }
    }

    /// Returns the record of the key. The key is claimed, because the store returns the body of a record only as the
    /// answer to a claim.
    async fn fetch(&self) -> Option<RequestEnd> {
        let request = ClaimRequest { token: Token::unique(), ..self.request };
        let mut check = CheckClaim { watch: self, request, may_exist: true };
        // A drain waits for a claim that is on its way.
        let _running = self.registry.running().token();
        let _pending = self.registry.renewer().asks(&self.key);
        let claimed = self.store.claim(&self.key, request).await;
        check.may_exist =
            matches!(claimed, Ok(Claim::Acquired { .. }) | Err(StoreError::Unavailable(_) | StoreError::TimedOut(_)));
        match claimed {
            Ok(Claim::Completed(record)) => Some(RequestEnd::Recorded(record)),
            Ok(Claim::InFlight { .. }) => None,
            Ok(Claim::Lapsed { .. }) => Some(RequestEnd::Lapsed),
            // The record no longer exists. Nothing has run under this new claim, so it is released. Then the attempt is
            // not counted.
            Ok(Claim::Acquired { attempt: 1 }) => {
                check.may_exist = self.store.release(&self.key, request.token).await.is_err();
                Some(RequestEnd::Gone)
            }
            Ok(Claim::Acquired { .. }) => Some(RequestEnd::Gone),
            Err(error) => {
                telemetry::claim_failed(&self.policy, self.store.name(), &error);
                Some(RequestEnd::Rejected(UNAVAILABLE))
            }
        }
    }

    /// Checks a key that is claimed in transactions. If the transaction gets the claim, it is rolled back, and nothing
    /// remains of it.
    async fn check_in_transaction(&self, transaction: &dyn HandlerTransaction) -> Option<RequestEnd> {
        let request = ClaimRequest { token: Token::unique(), ..self.request };
        let _pending = self.registry.renewer().asks(&self.key);
        let place = Place { store: self.store.name(), key: &self.key };
        let claim = TxClaimRequest {
            key: &self.key,
            request,
            isolation: self.policy.isolation(),
            without_response: self.registry.at_rest().without_response(place, request.fingerprint),
        };
        match transaction.claim(&self.store, claim).await {
            Ok(Claim::Completed(record)) => Some(RequestEnd::Recorded(record)),
            Ok(Claim::InFlight { .. }) => None,
            Ok(Claim::Lapsed { .. }) => (!self.runs_here()).then_some(RequestEnd::Lapsed),
            Ok(Claim::Acquired { .. }) => {
                let _ = transaction.roll_back(&self.store).await;
                Some(RequestEnd::Gone)
            }
            Err(error) => {
                telemetry::transaction_failed(&self.policy, self.store.name(), &error);
                Some(RequestEnd::Rejected(error.rejection(UNAVAILABLE)))
            }
        }
    }

    fn runs_here(&self) -> bool {
        self.registry.renewer().running(&self.store, &self.key, |_| true).is_some()
    }
}

/// A claim that a check may leave in the store. Nothing runs under this claim, so it is given back when the check ends
/// or is dropped.
struct CheckClaim<'a> {
    watch: &'a Watch,
    request: ClaimRequest,
    may_exist: bool,
}

impl Drop for CheckClaim<'_> {
    fn drop(&mut self) {
        if self.may_exist {
            self.watch.store.give_back(&self.watch.key, &self.request);
        }
    }
}
