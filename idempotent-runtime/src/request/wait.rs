//! Duplicates that wait for the request that runs (`in_flight = wait`). A waiter never executes, and looks without claiming.
//!
//! Waiters of one key in one runtime share their looks at the store: a thousand waiters cost as much as one. Waiters in different
//! runtimes share nothing, because the looks would end with their runtime, or stop when no thread drives it.

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
    /// Waits for the end of the request that runs: its response, or why there is none.
    pub(super) async fn wait(mut self, limit: Duration) -> Response {
        // It executes nothing: a drain need not wait for it.
        self.running = None;
        self.permits.running = None;
        let detach_state = &self.admission.execution.run.detach_state;
        if detach_state.is_abandoned() {
            // The client disconnected while the store was asked.
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

/// The data that a look at the store needs.
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
    /// How the request that runs has ended, unless it takes longer than `limit`.
    pub(super) async fn end_within(&self, limit: Duration) -> Option<RequestEnd> {
        let watched = self.watched();
        let ended = self.registry.watches().end_of(&watched, || self.clone().until_ended().boxed());
        Deadline::after(limit).bound(ended).await
    }

    fn watched(&self) -> Watched {
        (self.store.address(), self.key.clone(), self.transaction.is_some(), current_runtime())
    }

    /// How the request has ended, and when the look began that found this out.
    async fn until_ended(self) -> (Instant, RequestEnd) {
        // Looks are needed although the waiters are notified: a store need not notify about claims that end in other processes.
        let mut backoff = Backoff::BETWEEN_CHECKS;
        loop {
            // Subscribed before the look: an end between the look and the wait would be missed otherwise.
            let mut changed = pin!(self.changed().fuse());
            let _ = changed.as_mut().now_or_never();
            let looked_at = Instant::now();
            let looked = match &self.transaction {
                None => self.look().await,
                Some(transaction) => self.look_in_transaction(&**transaction).await,
            };
            if let Some(ended) = looked {
                return (looked_at, ended);
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

    /// `None` while it runs.
    async fn look(&self) -> Option<RequestEnd> {
        let ended = self.find().await?;
        if !matches!(ended, RequestEnd::Gone | RequestEnd::Lapsed) || self.store.transactions().is_none() {
            return Some(ended);
        }
        // Another version of the program may run it in a transaction.
        match self.store.is_in_transaction(&self.key).await {
            Ok(true) => None,
            // It may have been committed since it was looked for.
            Ok(false) => self.find().await,
            Err(error) => {
                telemetry::claim_failed(&self.policy, self.store.name(), &error);
                Some(RequestEnd::Rejected(UNAVAILABLE))
            }
        }
    }

    /// What the rows tell.
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
            // Whatever the store has forgotten, a handler that runs in this process has not ended.
            Some(_) => (!self.runs_here()).then_some(RequestEnd::Lapsed),
            None => (!self.runs_here()).then_some(RequestEnd::Gone),
        }
    }

    /// The record of the key: only a claim is answered with its body.
    async fn fetch(&self) -> Option<RequestEnd> {
        let request = ClaimRequest { token: Token::unique(), ..self.request };
        let mut look = LookClaim { watch: self, request, may_exist: true };
        // A drain waits for a claim that is on its way.
        let _running = self.registry.running().token();
        let _pending = self.registry.renewer().asks(&self.key);
        let claimed = self.store.claim(&self.key, request).await;
        look.may_exist =
            matches!(claimed, Ok(Claim::Acquired { .. }) | Err(StoreError::Unavailable(_) | StoreError::TimedOut(_)));
        match claimed {
            Ok(Claim::Completed(record)) => Some(RequestEnd::Recorded(record)),
            Ok(Claim::InFlight { .. }) => None,
            Ok(Claim::Lapsed { .. }) => Some(RequestEnd::Lapsed),
            // Nothing is there, or no longer. Nothing has run under this claim: released, it leaves no attempt to count.
            Ok(Claim::Acquired { attempt: 1 }) => {
                look.may_exist = self.store.release(&self.key, request.token).await.is_err();
                Some(RequestEnd::Gone)
            }
            Ok(Claim::Acquired { .. }) => Some(RequestEnd::Gone),
            Err(error) => {
                telemetry::claim_failed(&self.policy, self.store.name(), &error);
                Some(RequestEnd::Rejected(UNAVAILABLE))
            }
        }
    }

    /// A transaction leaves nothing behind: one that could begin is rolled back, and nothing has happened.
    async fn look_in_transaction(&self, transaction: &dyn HandlerTransaction) -> Option<RequestEnd> {
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

/// The claim that a look may leave in the store, and under which nothing runs. It is given back: released, also when the look is dropped.
struct LookClaim<'a> {
    watch: &'a Watch,
    request: ClaimRequest,
    may_exist: bool,
}

impl Drop for LookClaim<'_> {
    fn drop(&mut self) {
        if self.may_exist {
            self.watch.store.give_back(&self.watch.key, &self.request);
        }
    }
}
