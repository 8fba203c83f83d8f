//! Duplicates that wait for the request that runs (`in_flight = wait`). A waiter never executes, and looks without claiming.
//!
//! Those of one key and one runtime share their looks at the store: a key with a thousand waiters costs what one costs. Waiters
//! of different runtimes share none, since a runtime that ends, or that no thread drives, would take the looks along.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use axum::response::Response;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use super::claim::{Claiming, RETRY_AFTER, UNAVAILABLE};
use crate::deadline::Deadline;
use crate::policy::AfterCrash;
use crate::store::{BoundedStore, Claim, ClaimRequest, EntryState, StoreError, Token};
use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, RuntimeId, current_runtime, lock, tokio};
use crate::transaction::HandlerTransaction;
use crate::{Policy, Record, RecordKey, Refusal, Registry, telemetry};

/// How long the waiters of a key sleep between two looks at the store; another process need not ring a bell in this one.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How the request that was waited for has ended.
#[derive(Clone)]
pub(crate) enum Ended {
    Recorded(Record),
    /// Released, rolled back, purged or expired.
    Gone,
    /// Its lease has expired, or it left its claim to lapse.
    Lapsed,
    /// That cannot be found out.
    Refused(Refusal),
}

impl Claiming {
    /// Waits for the end of the request that runs: its response, or why there is none.
    pub(super) async fn wait(mut self, limit: Duration) -> Response {
        // It executes nothing: a drain need not wait for it.
        self.running = None;
        let in_flight = Refusal::InFlight { retry_after: RETRY_AFTER };
        let fate = &self.asking.execution.fate;
        if fate.is_abandoned() {
            // Its client left while the store was asked.
            return self.asking.refuse(in_flight);
        }
        fate.set_must_finish(false);
        let watch = Watch {
            policy: self.asking.policy,
            registry: self.registry.clone(),
            store: self.store.clone(),
            key: self.stored_key.clone(),
            request: self.request,
            transaction: self.asking.transaction.clone(),
        };
        match Deadline::after(limit).bound(self.registry.watches().end_of(&watch)).await {
            Some(Ended::Recorded(record)) => self.completed(record),
            Some(Ended::Lapsed) if self.asking.policy.after_crash == AfterCrash::Refuse => {
                self.asking.refuse(Refusal::OutcomeUnknown)
            }
            Some(Ended::Gone | Ended::Lapsed) => self.asking.refuse(Refusal::NotRecorded { retry_after: RETRY_AFTER }),
            Some(Ended::Refused(refusal)) => self.asking.refuse(refusal),
            None => self.asking.refuse(in_flight),
        }
    }
}

type Look = BoxFuture<'static, (Instant, Ended)>;
type Looking = Shared<Look>;
/// Store, key, whether it is claimed in transactions, and the runtime whose clock wakes the look.
type Watched = (usize, RecordKey, bool, Option<RuntimeId>);

/// The keys that are waited for in this process.
#[derive(Default)]
pub(crate) struct Watches(Mutex<HashMap<Watched, WeakShared<Look>>>);

impl Watches {
    /// What a look that begins from now on finds.
    async fn end_of(&self, watch: &Watch) -> Ended {
        let since = Instant::now();
        loop {
            let joined = self.join(watch);
            let (looked_at, ended) = joined.looking.clone().await;
            // An older look may have found the end of a request before the one that we wait for.
            if looked_at >= since {
                return ended;
            }
        }
    }

    fn join(&self, watch: &Watch) -> Joined<'_> {
        let watched = (watch.store.address(), watch.key.clone(), watch.transaction.is_some(), current_runtime());
        let mut all = lock(&self.0);
        let under_way = all.get(&watched).and_then(WeakShared::upgrade).filter(|looking| looking.peek().is_none());
        let looking = under_way.unwrap_or_else(|| {
            let looking = watch.clone().until_ended().boxed().shared();
            all.extend(looking.downgrade().map(|weak| (watched.clone(), weak)));
            looking
        });
        Joined { looking, _leave: Leave { watches: self, watched } }
    }
}

/// One waiter; its fields are dropped in this order.
struct Joined<'a> {
    looking: Looking,
    _leave: Leave<'a>,
}

struct Leave<'a> {
    watches: &'a Watches,
    watched: Watched,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut watches = lock(&self.watches.0);
        let left = watches.get(&self.watched).and_then(WeakShared::upgrade);
        if left.as_ref().is_none_or(|looking| looking.peek().is_some()) {
            watches.remove(&self.watched);
        }
        drop(watches);
    }
}

/// All that it takes to look.
#[derive(Clone)]
struct Watch {
    policy: &'static Policy,
    registry: Registry,
    store: BoundedStore,
    key: RecordKey,
    request: ClaimRequest,
    transaction: Option<std::sync::Arc<dyn HandlerTransaction>>,
}

impl Watch {
    /// How it has ended, and when the look began that found it out.
    async fn until_ended(self) -> (Instant, Ended) {
        let mut next_look = FIRST_LOOK;
        loop {
            // Armed before the look, or an end between the look and the wait would go unheard.
            let mut heard = pin!(self.listen().fuse());
            let _ = heard.as_mut().now_or_never();
            let looked_at = Instant::now();
            let looked = match &self.transaction {
                None => self.look().await,
                Some(transaction) => self.look_in_transaction(&**transaction).await,
            };
            if let Some(ended) = looked {
                return (looked_at, ended);
            }
            tokio::select! {
                () = heard => {}
                () = tokio::time::sleep(next_look) => {}
            }
            next_look = LOOK_EVERY.min(next_look * 2);
        }
    }

    /// Resolves when the entry of the key may have changed since the first poll.
    async fn listen(&self) {
        tokio::select! {
            () = self.registry.settled().ended(&self.key) => {}
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
                telemetry::claim_failed(self.policy, self.store.name(), &error);
                Some(Ended::Refused(UNAVAILABLE))
            }
        }
    }

    /// What the rows tell.
    async fn find(&self) -> Option<Ended> {
        let entry = match self.store.get(&self.key).await {
            Ok(entry) => entry,
            Err(error) => {
                telemetry::claim_failed(self.policy, self.store.name(), &error);
                return Some(Ended::Refused(UNAVAILABLE));
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
        if let Some(record) = self.store.near(&self.key) {
            return Some(Ended::Recorded(record));
        }
        let request = ClaimRequest { token: Token::unique(), ..self.request };
        let mut unwanted = Unwanted { watch: self, request, may_stand: true };
        // A drain waits for a claim that is on its way.
        let _running = self.registry.running().token();
        let claimed = self.store.claim(&self.key, request).await;
        unwanted.may_stand =
            matches!(claimed, Ok(Claim::Acquired { .. }) | Err(StoreError::Unavailable(_) | StoreError::TimedOut(_)));
        match claimed {
            Ok(Claim::Completed(record)) => Some(Ended::Recorded(record)),
            Ok(Claim::InFlight { .. }) => None,
            Ok(Claim::Lapsed { .. }) => Some(Ended::Lapsed),
            // Nothing is there, or no longer. Nothing has run under this claim: released, it leaves no attempt to count.
            Ok(Claim::Acquired { attempt: 1 }) => {
                unwanted.may_stand = self.store.release(&self.key, request.token).await.is_err();
                Some(Ended::Gone)
            }
            Ok(Claim::Acquired { .. }) => Some(Ended::Gone),
            Err(error) => {
                telemetry::claim_failed(self.policy, self.store.name(), &error);
                Some(Ended::Refused(UNAVAILABLE))
            }
        }
    }

    /// A transaction leaves nothing behind: one that could begin is rolled back, and nothing has happened.
    async fn look_in_transaction(&self, transaction: &dyn HandlerTransaction) -> Option<Ended> {
        let request = ClaimRequest { token: Token::unique(), ..self.request };
        match transaction.claim(&self.store, &self.key, request, self.policy.isolation).await {
            Ok(Claim::Completed(record)) => Some(Ended::Recorded(record)),
            Ok(Claim::InFlight { .. }) => None,
            Ok(Claim::Lapsed { .. }) => (!self.runs_here()).then_some(Ended::Lapsed),
            Ok(Claim::Acquired { .. }) => {
                transaction.roll_back(&self.store).await;
                Some(Ended::Gone)
            }
            Err(error) => {
                telemetry::transaction_failed(self.policy, self.store.name(), &error);
                Some(Ended::Refused(error.refusal(UNAVAILABLE)))
            }
        }
    }

    fn runs_here(&self) -> bool {
        self.registry.keeper().running(&self.store, &self.key, |_| true).is_some()
    }
}

/// A claim under which nothing runs. If the store may have it, it is given back, also when its look is dropped.
struct Unwanted<'a> {
    watch: &'a Watch,
    request: ClaimRequest,
    may_stand: bool,
}

impl Drop for Unwanted<'_> {
    fn drop(&mut self) {
        if self.may_stand {
            self.watch.store.give_back(&self.watch.key, &self.request);
        }
    }
}
