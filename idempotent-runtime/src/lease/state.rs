//! One claim of this process: its lease and its holder.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::lease::pending_claims::Count;
use crate::observe;
use crate::policy::scope::Scope;
use crate::store::claim::{ClaimRequest, Held, Token};
use crate::store::handle::StoreHandle;
use crate::sync::tokio::runtime::Handle;
use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, lock, tokio};

/// When a lease is due. The number tells those apart that are due at the same moment.
pub(super) type Slot = (Instant, u64);

/// A claim that this process holds.
pub(crate) struct Lease {
    pub(crate) store: StoreHandle,
    pub(crate) key: RecordKey,
    pub(crate) scope: Scope,
    /// The request of the claim, for claiming again.
    pub(super) request: ClaimRequest,
    pub(super) length: Duration,
    pub(super) state: Mutex<LeaseState>,
    /// Claims of requests for something else, which must be released: they were made while the store had forgotten this one.
    pub(super) others: Mutex<Vec<Token>>,
    /// Its place among those that wait, which is changed under the lock of the renewer alone.
    pub(super) slot: Mutex<Option<Slot>>,
    /// The steps that this attempt has recorded, or has the results of.
    pub(super) steps: Mutex<Vec<RecordKey>>,
    /// They are on their way with a renewal.
    pub(super) is_extending_steps: AtomicBool,
    pub(super) is_counted_as_lost: AtomicBool,
    /// The batch that it was renewed in got no answer in time.
    pub(super) is_alone: AtomicBool,
    /// Shared by renewals, since one may be stuck on a runtime that is blocked while another one does its work; exclusive for
    /// what must come after them.
    pub(super) renewing: tokio::sync::RwLock<()>,
    /// The runtime in which the key was claimed.
    pub(super) runtime: Option<Handle>,
    /// The pending claims of the key, counted since this lease is kept.
    pub(super) pending_claims: Option<Count>,
}

/// The state of the claim, and its token.
#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is independent of the others")]
pub(super) struct LeaseState {
    pub(super) token: Token,
    pub(super) phase: Phase,
    pub(super) may_change_hands: bool,
    pub(super) has_changed_hands: bool,
    /// Its end is on its way to the store: a renewal that finds no claim proves nothing.
    pub(super) is_ending: bool,
    /// How often the key was claimed again for this handler: by another request of this process, which left its claim to it, or
    /// by a renewal.
    pub(super) hand_overs: u32,
    /// When the last claim or renewal that succeeded was asked for: its lease began then, or later.
    pub(super) confirmed_at: Instant,
    /// Its handler takes steps, which must know when it has ended.
    pub(super) takes_steps: bool,
    /// When it has ended, with a record or without one. `None` while it is held, and after it has lapsed.
    pub(super) ended_at: Option<Instant>,
}

impl LeaseState {
    /// Whether the claim is lost if a renewal by this token finds none. A claim that is ending may already be gone: the answer
    /// to its end is on its way, or was lost.
    fn is_renewed_by(&self, token: Token) -> bool {
        self.phase == Phase::Held && self.token == token && self.may_change_hands && !self.is_ending
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Held,
    /// Another attempt probably has it.
    Lost,
    /// It is to lapse: no further renewal begins.
    Lapsing,
    /// It has ended, or its handler has no more use for it.
    Over,
}

impl Lease {
    pub(crate) fn new(store: StoreHandle, key: RecordKey, request: &ClaimRequest, scope: Scope) -> Self {
        let &ClaimRequest { token, lease: length, .. } = request;
        let state = LeaseState {
            token,
            phase: Phase::Held,
            may_change_hands: true,
            has_changed_hands: false,
            is_ending: false,
            hand_overs: 0,
            confirmed_at: Instant::now(),
            takes_steps: false,
            ended_at: None,
        };
        Self {
            store,
            key,
            scope,
            request: *request,
            length,
            state: Mutex::new(state),
            others: Mutex::default(),
            slot: Mutex::default(),
            steps: Mutex::default(),
            is_extending_steps: AtomicBool::new(false),
            is_counted_as_lost: AtomicBool::new(false),
            is_alone: AtomicBool::new(false),
            renewing: tokio::sync::RwLock::new(()),
            runtime: Handle::try_current().ok(),
            pending_claims: None,
        }
    }

    pub(super) fn token_and_hand_overs(&self) -> (Token, u32) {
        let state = lock(&self.state);
        (state.token, state.hand_overs)
    }

    pub(crate) fn token(&self) -> Token {
        lock(&self.state).token
    }

    /// From now on, accepts no other claim: there is no response to record. Returns whether others have claimed the key so far;
    /// their executions may be unknown.
    pub(crate) fn has_changed_hands_for_good(&self) -> bool {
        let mut state = lock(&self.state);
        state.may_change_hands = false;
        state.has_changed_hands
    }

    /// Whether this answer, which was asked for after so many hand-overs, is final. If so, no further claim is handed over.
    pub(super) fn is_over(&self, hand_overs: u32, held: Held) -> bool {
        let mut state = lock(&self.state);
        let is_over = held == Held::Yes || state.hand_overs == hand_overs;
        if is_over {
            let has_lapsed = state.phase == Phase::Lapsing && held == Held::Yes;
            if state.takes_steps && !has_lapsed && state.ended_at.is_none() {
                state.ended_at = Some(Instant::now());
            }
            state.phase = Phase::Over;
        }
        is_over
    }

    /// Accepts the claim that a duplicate has made in the store; false if this handler has already ended.
    pub(super) fn accept(&self, new_claim: &NewClaim<'_>, is_same_request: bool) -> bool {
        let mut state = lock(&self.state);
        let is_accepted = state.phase != Phase::Over && state.may_change_hands;
        state.hand_overs += u32::from(is_accepted);
        let phase = if state.phase == Phase::Lost { Phase::Held } else { state.phase };
        if is_accepted && is_same_request {
            *state = LeaseState {
                token: new_claim.request.token,
                phase,
                has_changed_hands: state.has_changed_hands || new_claim.attempt > 1,
                confirmed_at: new_claim.asked_at,
                ..*state
            };
        } else if is_accepted {
            // The store must have the claim of this handler's own request: the next renewal, or the end, releases the other
            // claim and claims the key again.
            state.phase = phase;
            lock(&self.others).push(new_claim.request.token);
        }
        is_accepted
    }

    pub(crate) fn is_running(&self) -> bool {
        lock(&self.state).phase != Phase::Over
    }

    /// Whether to claim again after the store has forgotten the claim: the handler may still have something to record.
    pub(super) fn may_reclaim(&self, token: Token) -> bool {
        let state = lock(&self.state);
        state.is_renewed_by(token)
    }

    /// A renewal has claimed the key again: an end that found it taken must look again. False if the handler has already ended.
    pub(super) fn has_reclaimed(&self) -> bool {
        let mut state = lock(&self.state);
        let is_running = state.phase != Phase::Over;
        state.hand_overs += u32::from(is_running);
        is_running
    }

    pub(super) fn confirm_at(&self, asked_at: Instant) {
        let mut state = lock(&self.state);
        state.confirmed_at = state.confirmed_at.max(asked_at);
    }

    /// Whether the lease has expired by this process's clock, so that another process may run.
    pub(crate) fn is_known_to_be_over(&self) -> bool {
        let confirmed_at = lock(&self.state).confirmed_at;
        confirmed_at.elapsed() > self.length
    }

    /// The token to renew the claim by; `None` if it needs no renewal.
    pub(super) fn token_to_renew(&self) -> Option<Token> {
        let state = *lock(&self.state);
        (state.phase == Phase::Held).then_some(state.token)
    }

    /// Whether the claim that was held by this token is lost.
    pub(super) fn has_lost(&self, token: Token) -> bool {
        let mut state = lock(&self.state);
        let has_lost = state.is_renewed_by(token);
        if has_lost {
            state.phase = Phase::Lost;
        }
        has_lost
    }

    /// Counts once, although both a renewal and the end of the handler may find it lost.
    pub(crate) fn count_as_lost(&self) {
        if !self.is_counted_as_lost.swap(true, Ordering::Relaxed) {
            observe::lease_lost(&self.scope);
        }
    }
}

/// The claim that a request has made in the store.
pub(crate) struct NewClaim<'a> {
    pub(crate) request: &'a ClaimRequest,
    pub(crate) attempt: u32,
    pub(crate) asked_at: Instant,
}

/// The handler that runs in this process under the key of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunningHandler {
    /// The handler of the same request.
    SameRequest,
    /// The handler of another request, which has this fingerprint.
    AnotherRequest(Fingerprint),
}

impl RunningHandler {
    pub(super) fn of(lease: &Lease, is_same_request: impl Fn(Fingerprint) -> bool) -> Self {
        let fingerprint = lease.request.fingerprint;
        if is_same_request(fingerprint) { Self::SameRequest } else { Self::AnotherRequest(fingerprint) }
    }
}
