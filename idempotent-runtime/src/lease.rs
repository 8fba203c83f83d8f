//! Renews the leases of running handlers: one task for all of them, so that a handler that blocks its thread keeps its
//! claim and a request costs no timer of its own.

mod reclaim;

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
    /// What was asked for, so that it can be asked for again.
    request: ClaimRequest,
    length: Duration,
    /// The higher, the later it was kept.
    number: u64,
    holding: Mutex<Holding>,
    /// Claims of requests for something else, which must be released: they were made while the store had forgotten this one.
    others: Mutex<Vec<Token>>,
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
    /// How often a request of this process has left its claim to this one.
    hand_overs: u32,
    /// When the last claim or renewal that succeeded was asked for: its lease began then, or later.
    confirmed_at: Instant,
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
        let &ClaimRequest { token, lease: length, .. } = request;
        let holding = Holding {
            token,
            state: State::Held,
            may_change_hands: true,
            has_changed_hands: false,
            hand_overs: 0,
            confirmed_at: Instant::now(),
        };
        Self {
            store,
            key,
            scope,
            request: *request,
            length,
            number: 0,
            holding: Mutex::new(holding),
            others: Mutex::default(),
            place: Mutex::default(),
            is_counted_as_lost: AtomicBool::new(false),
            renewing: tokio::sync::Mutex::default(),
        }
    }

    fn token_and_hand_overs(&self) -> (Token, u32) {
        let holding = lock(&self.holding);
        (holding.token, holding.hand_overs)
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

    /// Whether an answer is the last one that was asked for after so many hand-overs. If so, no claim is handed over any more.
    fn is_over(&self, hand_overs: u32, held: Held) -> bool {
        let mut holding = lock(&self.holding);
        let is_over = held == Held::Yes || holding.hand_overs == hand_overs;
        if is_over {
            holding.state = State::Over;
        }
        is_over
    }

    /// Takes the claim that a duplicate has got in the store; false when it has nothing to end any more but the claim itself.
    fn take_back(&self, taken: &Taken<'_>, is_same_request: bool) -> bool {
        let mut holding = lock(&self.holding);
        let takes = holding.state != State::Over && holding.may_change_hands;
        holding.hand_overs += u32::from(takes);
        if takes && is_same_request {
            let has_changed_hands = holding.has_changed_hands || taken.attempt > 1;
            let (token, confirmed_at) = (taken.request.token, taken.asked_at);
            *holding = Holding { token, state: State::Held, has_changed_hands, confirmed_at, ..*holding };
        } else if takes {
            // What stands in the store must be the claim for this handler's own request: the next renewal, or the end, releases
            // the other claim and claims the key anew.
            holding.state = State::Held;
            lock(&self.others).push(taken.request.token);
        }
        takes
    }

    fn is_running(&self) -> bool {
        lock(&self.holding).state != State::Over
    }

    /// Whether a claim that the store has forgotten is to be made again: the handler may still have something to record.
    fn may_reclaim(&self, token: Token) -> bool {
        let holding = lock(&self.holding);
        holding.state == State::Held && holding.token == token && holding.may_change_hands
    }

    fn confirm_at(&self, asked_at: Instant) {
        let mut holding = lock(&self.holding);
        holding.confirmed_at = holding.confirmed_at.max(asked_at);
    }

    /// Whether the lease is over by this process's own clock, so that another process may run by now.
    pub(crate) fn is_known_to_be_over(&self) -> bool {
        let confirmed_at = lock(&self.holding).confirmed_at;
        confirmed_at.elapsed() > self.length
    }

    /// The token to renew the claim by, as long as that makes sense.
    fn token_to_renew(&self) -> Option<Token> {
        let holding = *lock(&self.holding);
        (holding.state == State::Held).then_some(holding.token)
    }

    /// Whether the claim that was held by this token is lost.
    fn has_lost(&self, token: Token) -> bool {
        let mut holding = lock(&self.holding);
        // One that is about to be released is gone when the answer to that was lost.
        let has_lost = holding.state == State::Held && holding.token == token && holding.may_change_hands;
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

/// What a request has got from the store.
pub(crate) struct Taken<'a> {
    pub(crate) request: &'a ClaimRequest,
    pub(crate) attempt: u32,
    pub(crate) asked_at: Instant,
}

/// Whose handler runs in this process under a key that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Running {
    /// That of a request for the same.
    SameRequest,
    /// That of a request for something else.
    AnotherRequest,
}

impl Running {
    fn of(lease: &Lease, is_same_request: impl Fn(Fingerprint) -> bool) -> Self {
        if is_same_request(lease.request.fingerprint) { Self::SameRequest } else { Self::AnotherRequest }
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
            let held = self.renew_or_reclaim(token).await?;
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
        lock(&lease.holding).confirmed_at = now;
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

    /// Gives the claim that a request has got to the handler of an earlier request with the key, if that runs in this process.
    /// Its lease has run out, or the store has forgotten its claim, but it has not died.
    pub(crate) fn hand_over(
        &self,
        store: &BoundedStore,
        key: &RecordKey,
        taken: &Taken<'_>,
        is_same_request: impl Fn(Fingerprint) -> bool,
    ) -> Option<Running> {
        let mut leases = lock(&self.leases);
        let lease = leases.running(store, key)?;
        let running = Running::of(&lease, is_same_request);
        if !lease.take_back(taken, running == Running::SameRequest) {
            return None;
        }
        // The lease that it takes over may be shorter, and has begun some time ago.
        let now = Instant::now();
        leases.place(&lease, Some(now));
        self.wake(&mut leases, now);
        Some(running)
    }

    /// The handler that has claimed this key and still runs in this process, if there is one.
    pub(crate) fn running(
        &self,
        store: &BoundedStore,
        key: &RecordKey,
        is_same_request: impl Fn(Fingerprint) -> bool,
    ) -> Option<Running> {
        let lease = lock(&self.leases).running(store, key)?;
        Some(Running::of(&lease, is_same_request))
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
        let renewed = lease.renew_or_reclaim(token).await;
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
    /// The last one that has claimed this key and has not ended.
    fn running(&self, store: &BoundedStore, key: &RecordKey) -> Option<Arc<Lease>> {
        let of_key =
            self.by_due.values().filter(|lease| lease.key == *key && lease.store.is(store) && lease.is_running());
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
