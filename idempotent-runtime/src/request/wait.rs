//! Duplicates that wait for the request that runs (`in_flight = wait`). A waiter never executes, and looks without claiming.
//!
//! Waiters of one key in one runtime share their looks at the store: a thousand waiters cost as much as one. Waiters in different
//! runtimes share nothing, because the looks would end with their runtime, or stop when no thread drives it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::key::RecordKey;
use crate::observe::telemetry;
use crate::policy::handle::PolicyHandle;
use crate::record::envelope::Place;
use crate::registry::Registry;
use crate::registry::watches::{Ended, Watched};
use crate::rejection::problem::UNAVAILABLE;
use crate::store::claim::{Claim, ClaimRequest, Token};
use crate::store::entry::EntryState;
use crate::store::error::StoreError;
use crate::store::handle::StoreHandle;
use crate::sync::tokio::time::Instant;
use crate::sync::{current_runtime, tokio};
use crate::transaction::contract::HandlerTransaction;
use crate::transaction::transactions::TxClaimRequest;

/// All that it takes to look.
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
    pub(super) async fn end_within(&self, limit: Duration) -> Option<Ended> {
        let watched = self.watched();
        let ended = self.registry.watches().end_of(&watched, || self.clone().until_ended().boxed());
        Deadline::after(limit).bound(ended).await
    }

    fn watched(&self) -> Watched {
        (self.store.address(), self.key.clone(), self.transaction.is_some(), current_runtime())
    }

    /// How the request has ended, and when the look began that found this out.
    async fn until_ended(self) -> (Instant, Ended) {
        // Looks are needed although the waiters are notified: a store need not notify about claims that end in other processes.
        let mut backoff = Backoff::BETWEEN_LOOKS;
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
    async fn look(&self) -> Option<Ended> {
        let ended = self.find().await?;
        if !matches!(ended, Ended::Gone | Ended::Lapsed) || self.store.transactions().is_none() {
            return Some(ended);
        }
        // Another version of the program may run it in a transaction.
        match self.store.is_in_transaction(&self.key).await {
            Ok(true) => None,
            // It may have been committed since it was looked for.
            Ok(false) => self.find().await,
            Err(error) => {
                telemetry::claim_failed(&self.policy, self.store.name(), &error);
                Some(Ended::Rejected(UNAVAILABLE))
            }
        }
    }

    /// What the rows tell.
    async fn find(&self) -> Option<Ended> {
        let entry = match self.store.get(&self.key).await {
            Ok(entry) => entry,
            Err(error) => {
                telemetry::claim_failed(&self.policy, self.store.name(), &error);
                return Some(Ended::Rejected(UNAVAILABLE));
            }
        };
        match entry.map(|entry| entry.state) {
            Some(EntryState::Completed { .. }) => self.fetch().await,
            Some(EntryState::Claimed { lease: Some(_), .. }) => None,
            // Whatever the store has forgotten, a handler that runs in this process has not ended.
            Some(_) => (!self.runs_here()).then_some(Ended::Lapsed),
            None => (!self.runs_here()).then_some(Ended::Gone),
        }
    }

    /// The record of the key: only a claim is answered with its body.
    async fn fetch(&self) -> Option<Ended> {
        let request = ClaimRequest { token: Token::unique(), ..self.request };
        let mut look = LookClaim { watch: self, request, may_exist: true };
        // A drain waits for a claim that is on its way.
        let _running = self.registry.running().token();
        let _pending = self.registry.renewer().asks(&self.key);
        let claimed = self.store.claim(&self.key, request).await;
        look.may_exist =
            matches!(claimed, Ok(Claim::Acquired { .. }) | Err(StoreError::Unavailable(_) | StoreError::TimedOut(_)));
        match claimed {
            Ok(Claim::Completed(record)) => Some(Ended::Recorded(record)),
            Ok(Claim::InFlight { .. }) => None,
            Ok(Claim::Lapsed { .. }) => Some(Ended::Lapsed),
            // Nothing is there, or no longer. Nothing has run under this claim: released, it leaves no attempt to count.
            Ok(Claim::Acquired { attempt: 1 }) => {
                look.may_exist = self.store.release(&self.key, request.token).await.is_err();
                Some(Ended::Gone)
            }
            Ok(Claim::Acquired { .. }) => Some(Ended::Gone),
            Err(error) => {
                telemetry::claim_failed(&self.policy, self.store.name(), &error);
                Some(Ended::Rejected(UNAVAILABLE))
            }
        }
    }

    /// A transaction leaves nothing behind: one that could begin is rolled back, and nothing has happened.
    async fn look_in_transaction(&self, transaction: &dyn HandlerTransaction) -> Option<Ended> {
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
            Ok(Claim::Completed(record)) => Some(Ended::Recorded(record)),
            Ok(Claim::InFlight { .. }) => None,
            Ok(Claim::Lapsed { .. }) => (!self.runs_here()).then_some(Ended::Lapsed),
            Ok(Claim::Acquired { .. }) => {
                let _ = transaction.roll_back(&self.store).await;
                Some(Ended::Gone)
            }
            Err(error) => {
                telemetry::transaction_failed(&self.policy, self.store.name(), &error);
                Some(Ended::Rejected(error.rejection(UNAVAILABLE)))
            }
        }
    }

    fn runs_here(&self) -> bool {
        self.registry.renewer().running(&self.store, &self.key, |_| true).is_some()
    }
}

/// The claim that a look may leave in the store, and under which nothing runs. It is given back, also when the look is dropped.
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
