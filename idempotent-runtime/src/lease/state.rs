//! One claim of this process: its lease and its holder.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::lease::ended_claim::EndedClaim;
use crate::lease::pending_claims::Count;
use crate::observe;
use crate::policy::scope::Scope;
use crate::store::claim::{ClaimRequest, Held, Token};
use crate::store::handle::StoreHandle;
use crate::sync::tokio::runtime::Handle;
use crate::sync::tokio::time::Instant;
use crate::sync::{Mutex, lock, tokio};

/// When a lease is due. The number distinguishes leases that are due at the same moment.
pub(super) type Slot = (Instant, u64);

/// A claim that this process holds.
pub(crate) struct Lease {
    pub(crate) store: StoreHandle,
    pub(crate) key: RecordKey,
    pub(crate) scope: Scope,
    /// The request of the claim, with which the key can be claimed again.
    pub(super) request: ClaimRequest,
    pub(super) length: Duration,
    pub(super) state: Mutex<LeaseState>,
    /// Claims of different requests that were made while the store had forgotten this one. They must be released.
    pub(super) others: Mutex<Vec<Token>>,
    /// The place of the lease in the schedule. The place is changed only under the lock of the renewer.
    pub(super) slot: Mutex<Option<Slot>>,
    /// The steps that this attempt has recorded, or whose results it has read.
    pub(super) steps: Mutex<Vec<RecordKey>>,
    /// Held while a renewal, or the end of the claim, sets how long the steps live.
    pub(super) extending_steps: tokio::sync::Mutex<()>,
    pub(super) is_counted_as_lost: AtomicBool,
    /// Whether the last batch that contained this lease got no answer in time. Such a lease is renewed alone.
    pub(super) is_alone: AtomicBool,
    /// Renewals share this lock, because one renewal may be stuck on a blocked runtime while another one replaces it.
    /// Operations that must come after the renewals take it exclusively.
    pub(super) renewing: tokio::sync::RwLock<()>,
    /// The runtime in which the key was claimed.
    pub(super) runtime: Option<Handle>,
    /// The pending claims of the key, counted from the time when this lease was kept.
    pub(super) pending_claims: Option<Arc<Count>>,
}

/// The state of the claim, and its token.
#[derive(Clone, Copy)]
pub(super) struct LeaseState {
    pub(super) token: Token,
    pub(super) phase: Phase,
    pub(super) may_change_hands: bool,
    pub(super) has_changed_hands: bool,
    /// Whether the end of the claim is being sent to the store. If so, a renewal that finds no claim proves nothing.
    pub(super) is_ending: bool,
    /// How often this handler got a new claim of its key: from another request of this process, which handed its claim
    /// over, or from a renewal.
    pub(super) hand_overs: u32,
    /// When the last successful claim or renewal was sent. The lease of that call began then, or later.
    pub(super) confirmed_at: Instant,
    /// How long the steps of the handler live after its end. `None` if the handler has not begun a step: then no step
    /// depends on the end of the claim.
    pub(super) ttl_of_steps: Option<Duration>,
    /// When the record was first sent to the store. If the answer is lost, the record's ttl may have begun then.
    pub(super) record_sent_at: Option<Instant>,
    /// `None` while the claim is held, and after it has lapsed.
    pub(super) ended: Option<EndedClaim>,
}

impl LeaseState {
    /// Returns whether the claim is lost if a renewal with this token finds no claim. A claim whose end was sent may
    /// already be gone from the store, because the answer to the end is on its way or was lost.
    fn is_renewed_by(&self, token: Token) -> bool {
        self.phase == Phase::Held && self.token == token && self.may_change_hands && !self.is_ending
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Held,
    /// Another attempt probably has the key.
    Lost,
    /// The claim will lapse: no further renewal begins.
    Lapsing,
    /// The claim has ended, or its handler no longer needs it.
    Over,
}

impl Lease {
    /// Creates the lease of a claim that was sent to the store at `asked_at`.
    pub(crate) fn new(
        store: StoreHandle,
        key: RecordKey,
        request: &ClaimRequest,
        scope: Scope,
        asked_at: Instant,
    ) -> Self {
        let &ClaimRequest { token, lease: length, .. } = request;
        let state = LeaseState {
            token,
            phase: Phase::Held,
            may_change_hands: true,
            has_changed_hands: false,
            is_ending: false,
            hand_overs: 0,
            confirmed_at: asked_at,
            ttl_of_steps: None,
            record_sent_at: None,
            ended: None,
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
            extending_steps: tokio::sync::Mutex::default(),
            is_counted_as_lost: AtomicBool::new(false),
            is_alone: AtomicBool::new(false),
            renewing: tokio::sync::RwLock::new(()),
            runtime: Handle::try_current().ok(),
            pending_claims: None,
        }
    }

    /// Returns the request of the claim.
    pub(crate) fn request(&self) -> ClaimRequest {
        self.request
    }

    pub(super) fn token_and_hand_overs(&self) -> (Token, u32) {
        let state = lock(&self.state);
        (state.token, state.hand_overs)
    }

    pub(crate) fn token(&self) -> Token {
        lock(&self.state).token
    }

    /// Accepts no other claim from now on, because there is no response to record. Returns whether other requests have
    /// claimed the key so far: the outcome of their executions may be unknown.
    pub(crate) fn has_changed_hands_for_good(&self) -> bool {
        let mut state = lock(&self.state);
        state.may_change_hands = false;
        state.has_changed_hands
    }

    /// Notes that an end of the claim is about to be sent to the store. Returns the token and the number of hand-overs.
    pub(super) fn begin_end(&self) -> (Token, u32) {
        let mut state = lock(&self.state);
        state.is_ending = true;
        if state.ttl_of_steps.is_some() {
            state.record_sent_at.get_or_insert_with(Instant::now);
        }
        (state.token, state.hand_overs)
    }

    /// Returns whether the store's answer to the end of the claim is final. `hand_overs` is the number of hand-overs
    /// when the call was sent. If the answer is final, no further claim is handed over.
    pub(super) fn is_over(&self, hand_overs: u32, held: Held) -> bool {
        let mut state = lock(&self.state);
        let is_over = held == Held::Yes || state.hand_overs == hand_overs;
        if is_over {
            let has_lapsed = state.phase == Phase::Lapsing && held == Held::Yes;
            if let (Some(ttl), None, false) = (state.ttl_of_steps, state.ended, has_lapsed) {
                let record_sent_at = state.record_sent_at.filter(|_| held == Held::Yes);
                state.ended = Some(EndedClaim::new(record_sent_at, ttl));
            }
            state.phase = Phase::Over;
        }
        is_over
    }

    /// Accepts the claim that a duplicate has made in the store. Returns false if this handler has already ended.
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
            // The store must hold the claim of this handler's own request. The next renewal, or the end, releases the
            // other claim and claims the key again.
            state.phase = phase;
            lock(&self.others).push(new_claim.request.token);
        }
        is_accepted
    }

    pub(crate) fn is_running(&self) -> bool {
        lock(&self.state).phase != Phase::Over
    }

    /// Returns whether the key may be claimed again after the store has forgotten the claim: the handler may still have
    /// a response to record.
    pub(super) fn may_reclaim(&self, token: Token) -> bool {
        let state = lock(&self.state);
        state.is_renewed_by(token)
    }

    /// Notes that a renewal has claimed the key again. An end of the claim that found the key taken is then sent again.
    /// Returns false if the handler has already ended.
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

    /// Returns whether the lease has expired by this process's clock, so that another process may run the handler.
    pub(crate) fn is_known_to_be_over(&self) -> bool {
        let confirmed_at = lock(&self.state).confirmed_at;
        confirmed_at.elapsed() > self.length
    }

    /// Returns the token with which to renew the claim. Returns `None` if the claim needs no renewal.
    pub(super) fn token_to_renew(&self) -> Option<Token> {
        let state = *lock(&self.state);
        (state.phase == Phase::Held).then_some(state.token)
    }

    /// Marks the claim as lost because a renewal with this token found no claim. Returns false if that renewal proves
    /// no loss: then nothing is marked.
    pub(super) fn has_lost(&self, token: Token) -> bool {
        let mut state = lock(&self.state);
        let has_lost = state.is_renewed_by(token);
        if has_lost {
            state.phase = Phase::Lost;
        }
        has_lost
    }

    /// Counts a lost claim once, although both a renewal and the end of the handler may notice it.
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

/// The handler that runs in this process under the key of a new request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunningHandler {
    /// The handler of the same request.
    SameRequest,
    /// The handler of a different request, which has this fingerprint.
    AnotherRequest(Fingerprint),
}

impl RunningHandler {
    pub(super) fn of(lease: &Lease, is_same_request: impl Fn(Fingerprint) -> bool) -> Self {
        let fingerprint = lease.request.fingerprint;
        if is_same_request(fingerprint) { Self::SameRequest } else { Self::AnotherRequest(fingerprint) }
    }
}
