//! Renews the leases of running handlers: one task for all of them, so that a handler that blocks its thread keeps its
//! claim and a request costs no timer of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::metering;
use crate::store::{BoundedStore, ClaimRequest, Held, StoreError, Token};
use crate::sync::tokio::sync::Notify;
use crate::sync::tokio::task::JoinHandle;
use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, lock, tokio};
use crate::{Fingerprint, RecordKey};

/// A claim that this process holds.
pub(crate) struct Lease {
    pub(crate) store: BoundedStore,
    pub(crate) key: RecordKey,
    pub(crate) scope: &'static str,
    fingerprint: Fingerprint,
    length: Duration,
    /// The higher, the later it was kept.
    number: u64,
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
    may_change_hands: bool,
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
    pub(crate) fn new(store: BoundedStore, key: RecordKey, request: &ClaimRequest, scope: &'static str) -> Self {
        let &ClaimRequest { token, fingerprint, lease: length, .. } = request;
        let holding = Holding { token, state: State::Held, may_change_hands: true, has_changed_hands: false };
        Self {
            store,
            key,
            scope,
            fingerprint,
            length,
            number: 0,
            holding: Mutex::new(holding),
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

    /// Takes no claim back from here on: there is no response to record. Whether others have claimed the key so far, of whose
    /// executions nothing may be known.
    pub(crate) fn has_changed_hands_for_good(&self) -> bool {
        let mut holding = lock(&self.holding);
        holding.may_change_hands = false;
        holding.has_changed_hands
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

    /// Goes on under the token of an attempt that has taken the claim over; false when it has nothing to end any more but
    /// the claim itself.
    fn take_back(&self, token: Token) -> bool {
        let mut holding = lock(&self.holding);
        let takes = holding.state != State::Over && holding.may_change_hands;
        if takes {
            *holding = Holding { token, state: State::Held, has_changed_hands: true, ..*holding };
        }
        takes
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
        loop {
            let Some(token) = self.token_to_renew() else { return Ok(Held::No) };
            let held = self.store.renew(&self.key, token, self.length).await?;
            if held == Held::Yes || self.token() == token {
                return Ok(held);
            }
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
        let mut leases = lock(&self.leases);
        let lease = Arc::new(Lease { number: leases.next_number, ..lease });
        leases.place(&lease, Some(due));
        // The task dies with the runtime that it was spawned on, which need not be the last one of the process.
        let has_woken = if leases.task.as_ref().is_none_or(JoinHandle::is_finished) {
            leases.wakes_at = Some(due);
            leases.task = Some(tokio::spawn(Arc::clone(self).run()));
            true
        } else {
            self.wake(&mut leases, due)
        };
        drop(leases);
        (KeptLease { keeper: Arc::clone(self), lease }, has_woken)
    }

    /// Gives the claim that `request` has taken over to the handler which it was taken from, if that runs in this process: its
    /// lease has run out, because the store was away or the process stood still, and nobody has died.
    pub(crate) fn hand_over(&self, store: &BoundedStore, key: &RecordKey, request: &ClaimRequest) -> bool {
        let mut leases = lock(&self.leases);
        let Some(lease) = leases.latest(store, key, request.fingerprint) else { return false };
        let is_back = lease.take_back(request.token);
        if is_back {
            // The lease that it takes over may be shorter, and has begun some time ago.
            let now = Instant::now();
            leases.place(&lease, Some(now));
            self.wake(&mut leases, now);
        }
        is_back
    }

    /// Whether a handler that has claimed this key for the same request still runs in this process.
    pub(crate) fn runs(&self, store: &BoundedStore, key: &RecordKey, request: &ClaimRequest) -> bool {
        let latest = lock(&self.leases).latest(store, key, request.fingerprint);
        latest.is_some_and(|lease| lock(&lease.holding).state != State::Over)
    }

    /// Whether the task had to be woken for a lease that is due then.
    fn wake(&self, leases: &mut Leases, due: Instant) -> bool {
        let must_wake = leases.wakes_at.is_none_or(|wakes_at| due < wakes_at);
        if must_wake {
            leases.wakes_at = Some(due);
            self.earlier.notify_one();
        }
        must_wake
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
                self.wake(&mut leases, retry);
            }
        }
    }
}

impl Leases {
    /// Of those who have claimed this key for the same request, the last one: after a purge there may be others.
    fn latest(&self, store: &BoundedStore, key: &RecordKey, fingerprint: Fingerprint) -> Option<Arc<Lease>> {
        let of_key = self
            .by_due
            .values()
            .filter(|lease| lease.key == *key && lease.fingerprint == fingerprint && lease.store.is(store));
        of_key.max_by_key(|lease| lease.number).cloned()
    }

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
