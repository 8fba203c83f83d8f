//! Renews the leases of running handlers: one task for all of them, so that a handler that blocks its thread keeps its
//! claim and a request costs no timer of its own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::RecordKey;
use crate::metering;
use crate::store::{BoundedStore, Held, StoreError, Token};
use crate::sync::tokio::sync::Notify;
use crate::sync::tokio::task::JoinHandle;
use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, MutexGuard, tokio};

/// A claim that this process holds.
pub(crate) struct Lease {
    pub(crate) store: BoundedStore,
    pub(crate) key: RecordKey,
    pub(crate) scope: &'static str,
    length: Duration,
    holding: Mutex<Holding>,
    /// Its place among those that wait, which is changed under the lock of the keeper alone.
    place: Mutex<Place>,
    is_counted_as_lost: AtomicBool,
    /// Held over a renewal.
    renewing: tokio::sync::Mutex<()>,
}

/// By which token the claim is held.
#[derive(Clone, Copy)]
struct Holding {
    token: Token,
    state: State,
    has_changed_hands: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Held,
    /// As far as is known, another attempt has it.
    Lost,
    /// It has ended, or nobody wants it any more.
    Over,
}

impl Lease {
    pub(crate) fn new(
        store: BoundedStore,
        key: RecordKey,
        token: Token,
        scope: &'static str,
        length: Duration,
    ) -> Self {
        Self {
            store,
            key,
            scope,
            length,
            holding: Mutex::new(Holding { token, state: State::Held, has_changed_hands: false }),
            place: Mutex::default(),
            is_counted_as_lost: AtomicBool::new(false),
            renewing: tokio::sync::Mutex::default(),
        }
    }

    /// Ends the claim by what `ask` asks of the store; again where another attempt has handed its claim over meanwhile.
    pub(crate) async fn end<F>(&self, mut ask: impl FnMut(Token) -> F) -> Result<Held, StoreError>
    where
        F: Future<Output = Result<Held, StoreError>>,
    {
        loop {
            let token = self.token();
            let held = ask(token).await?;
            if self.is_over(token, held) {
                return Ok(held);
            }
        }
    }

    /// [`end`](Self::end), where the store answers at once.
    pub(crate) fn end_now(&self, ask: impl Fn(Token) -> Result<Held, StoreError>) -> Result<Held, StoreError> {
        loop {
            let token = self.token();
            let held = ask(token)?;
            if self.is_over(token, held) {
                return Ok(held);
            }
        }
    }

    pub(crate) fn token(&self) -> Token {
        lock(&self.holding).token
    }

    /// Whether others have claimed the key since, of whose executions nothing may be known.
    pub(crate) fn has_changed_hands(&self) -> bool {
        lock(&self.holding).has_changed_hands
    }

    /// Whether this answer to the token that was asked by is the last one. If so, no claim is handed over any more.
    fn is_over(&self, token: Token, held: Held) -> bool {
        let mut holding = lock(&self.holding);
        let is_over = held == Held::Yes || holding.token == token;
        if is_over {
            holding.state = State::Over;
        }
        is_over
    }

    /// Goes on under the token of an attempt that has taken the claim over; false when it has ended.
    fn take_back(&self, token: Token) -> bool {
        let mut holding = lock(&self.holding);
        let runs = holding.state != State::Over;
        if runs {
            *holding = Holding { token, state: State::Held, has_changed_hands: true };
        }
        runs
    }

    /// The token to renew the claim by, as long as that makes sense.
    fn token_to_renew(&self) -> Option<Token> {
        let holding = *lock(&self.holding);
        (holding.state == State::Held).then_some(holding.token)
    }

    /// Whether the claim that was held by this token is lost.
    fn has_lost(&self, token: Token) -> bool {
        let mut holding = lock(&self.holding);
        let has_lost = holding.state == State::Held && holding.token == token;
        if has_lost {
            holding.state = State::Lost;
        }
        has_lost
    }

    /// A renewal may see it, and the end of the handler once more.
    pub(crate) fn count_as_lost(&self) {
        if !self.is_counted_as_lost.swap(true, Ordering::Relaxed) {
            metering::lease_lost(self.scope);
        }
    }
}

/// When a lease is due; `None` when nobody renews it. The number tells those apart that are due at the same moment.
type Place = Option<(Instant, u64)>;

/// Keeps the lease alive until it is dropped.
pub(crate) struct KeptLease {
    keeper: Arc<Keeper>,
    lease: Arc<Lease>,
}

impl std::ops::Deref for KeptLease {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        &self.lease
    }
}

impl Lease {
    /// Starts the lease anew; [`Held::No`] when the claim is lost or has ended.
    pub(crate) async fn confirm(&self) -> Result<Held, StoreError> {
        // Not behind the back of whoever ends the renewals: it would bring the lease back to life.
        let _renewing = self.renewing.lock().await;
        match self.token_to_renew() {
            Some(token) => self.store.renew(&self.key, token, self.length).await,
            None => Ok(Held::No),
        }
    }
}

impl KeptLease {
    /// What is kept, for those who may outlive the claim.
    pub(crate) fn share(&self) -> Arc<Lease> {
        Arc::clone(&self.lease)
    }

    /// Ends the renewals, the one that is on its way included.
    pub(crate) async fn stop_renewing(&self) {
        lock(&self.lease.holding).state = State::Over;
        drop(self.lease.renewing.lock().await);
    }
}

impl Drop for KeptLease {
    fn drop(&mut self) {
        lock(&self.keeper.leases).place(&self.lease, None);
    }
}

#[derive(Default)]
pub(crate) struct Keeper {
    leases: Mutex<Leases>,
    earlier: Notify,
}

#[derive(Default)]
struct Leases {
    by_due: BTreeMap<(Instant, u64), Arc<Lease>>,
    next_number: u64,
    task: Option<JoinHandle<()>>,
    wakes_at: Option<Instant>,
}

impl Keeper {
    /// Renews `lease` at every third of its length from `now` on; also whether the task had to be woken for it.
    pub(crate) fn keep(self: &Arc<Self>, lease: Lease, now: Instant) -> (KeptLease, bool) {
        let due = now + lease.length / 3;
        let lease = Arc::new(lease);
        let mut leases = lock(&self.leases);
        leases.place(&lease, Some(due));
        // The task dies with the runtime that it was spawned on, which need not be the last one of the process.
        let has_woken = if leases.task.as_ref().is_none_or(JoinHandle::is_finished) {
            leases.wakes_at = Some(due);
            leases.task = Some(tokio::spawn(Arc::clone(self).run()));
            true
        } else if leases.wakes_at.is_none_or(|wakes_at| due < wakes_at) {
            leases.wakes_at = Some(due);
            self.earlier.notify_one();
            true
        } else {
            false
        };
        drop(leases);
        (KeptLease { keeper: Arc::clone(self), lease }, has_woken)
    }

    /// Gives the claim that `token` has taken over to the handler which it was taken from, if that runs in this process: its
    /// lease has run out, because the store was away or the process stood still, and nobody has died.
    pub(crate) fn hand_over(&self, store: &BoundedStore, key: &RecordKey, token: Token) -> bool {
        let leases = lock(&self.leases);
        let mut running = leases.by_due.values().filter(|lease| lease.key == *key && lease.store.is(store));
        running.any(|lease| lease.take_back(token))
    }

    /// To be awaited after the task was woken.
    ///
    /// It waits on this very thread, where no other one can take it, until we yield: a handler that blocks right away would
    /// hold up the renewal of its own lease.
    pub(crate) async fn let_it_run() {
        tokio::task::yield_now().await;
    }

    async fn run(self: Arc<Self>) {
        loop {
            let wakes_at = {
                let mut leases = lock(&self.leases);
                for lease in leases.take_due(Instant::now()) {
                    // A task each: one store that hangs must not let the leases of another run out.
                    tokio::spawn(Arc::clone(&self).renew(lease));
                }
                leases.wakes_at = leases.by_due.first_key_value().map(|(&(due, _), _)| due);
                let Some(wakes_at) = leases.wakes_at else {
                    // The lock is held: whoever keeps the next lease sees this and spawns a new task.
                    leases.task = None;
                    return;
                };
                wakes_at
            };
            tokio::select! {
                () = tokio::time::sleep_until(wakes_at) => {}
                () = self.earlier.notified() => {}
            }
        }
    }

    async fn renew(self: Arc<Self>, lease: Arc<Lease>) {
        let _renewing = lease.renewing.lock().await;
        let Some(token) = lease.token_to_renew() else { return };
        let renewed = lease.store.renew(&lease.key, token, lease.length).await;
        let mut leases = lock(&self.leases);
        if lock(&lease.place).is_none() {
            // The handler has ended meanwhile, and its claim with it.
            return;
        }
        match renewed {
            Ok(Held::Yes) => {}
            Ok(Held::No) if !lease.has_lost(token) => {}
            Ok(Held::No) => {
                lease.count_as_lost();
                tracing::error!(
                    scope = lease.scope,
                    store = lease.store.name(),
                    "a running handler has lost its claim: another request with its key may run"
                );
            }
            Err(error) => {
                tracing::warn!(
                    scope = lease.scope,
                    store = lease.store.name(),
                    error = &error as &dyn std::error::Error,
                    "a lease could not be renewed; trying again"
                );
                let retry = Instant::now() + lease.length / 10;
                leases.place(&lease, Some(retry));
                if leases.wakes_at.is_none_or(|wakes_at| retry < wakes_at) {
                    leases.wakes_at = Some(retry);
                    self.earlier.notify_one();
                }
            }
        }
    }
}

impl Leases {
    /// What is due now, already entered again for its next renewal.
    fn take_due(&mut self, now: Instant) -> Vec<Arc<Lease>> {
        let mut due = Vec::new();
        while let Some((&(at, _), lease)) = self.by_due.first_key_value()
            && at <= now
        {
            let lease = Arc::clone(lease);
            self.place(&lease, Some(now + lease.length / 3));
            due.push(lease);
        }
        due
    }

    /// Moves the lease to where it is due at this time, or takes it out.
    fn place(&mut self, lease: &Arc<Lease>, due: Option<Instant>) {
        let mut place = lock(&lease.place);
        if let Some(former) = place.take() {
            self.by_due.remove(&former);
        }
        *place = due.map(|at| {
            self.next_number += 1;
            self.by_due.insert((at, self.next_number), Arc::clone(lease));
            (at, self.next_number)
        });
    }
}

/// No code of ours panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
