//! Ends a claim, and claims its key again if the store has forgotten the claim because its `ttl` expired, an operator
//! purged it, or the store was emptied. The handler still runs, so this process does not consider its key free: only
//! another process can have the key.

use std::time::Duration;

use crate::deadline::Deadline;
use crate::lease::state::{Lease, Phase};
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::error::StoreError;
use crate::sync::lock;
use crate::sync::tokio::sync::RwLockWriteGuard;
use crate::sync::tokio::time::Instant;

/// How often one call may find that the claim is forgotten, or that another request of this process has it. A store
/// that forgets each claim at once keeps no record either.
const MOST_TRIES: u32 = 3;

impl Lease {
    /// Ends the claim with the call `ask`. Repeats the call if a duplicate has handed over its claim meanwhile, or if
    /// the store had forgotten the claim. [`Held::No`] means that another process has the key.
    pub(crate) async fn end<F>(&self, mut ask: impl FnMut(Token) -> F) -> Result<Held, StoreError>
    where
        F: Future<Output = Result<Held, StoreError>>,
    {
        self.begin_end();
        let mut tries = 0;
        loop {
            let (token, hand_overs) = self.token_and_hand_overs();
            let held = ask(token).await?;
            if held == Held::No && tries < MOST_TRIES {
                tries += 1;
                // A request of this process may have claimed the key, and may not have received the answer yet.
                if self.reclaim(token).await? == Held::Yes || self.pending_claims_ended(hand_overs).await {
                    continue;
                }
            }
            if self.is_over(hand_overs, held) {
                return Ok(held);
            }
            // Meanwhile, a request of this process has handed over its claim.
            tries = 0;
        }
    }

    /// Waits until no claim of the key is pending in this process, or until a claim was handed over. Returns false if
    /// no claim was pending.
    async fn pending_claims_ended(&self, hand_overs: u32) -> bool {
        let Some(count) = &self.pending_claims else { return false };
        let ended = count.none_pending_or(|| self.token_and_hand_overs().1 != hand_overs);
        // After this time, a request whose claim has no answer has failed.
        Deadline::after(self.store.limit()).bound(ended).await.unwrap_or(true)
    }

    /// Ends the claim if the store answers at once. Returns false if [`end`](Self::end) must be called.
    pub(crate) fn end_now(&self, ask: impl FnOnce(Token) -> Result<Held, StoreError>) -> bool {
        let (token, hand_overs) = self.begin_end();
        matches!(ask(token), Ok(Held::Yes)) && self.is_over(hand_overs, Held::Yes)
    }

    /// Frees the key, if the claim still exists.
    pub(crate) async fn release(&self) -> Result<Held, StoreError> {
        // Without this wait, a running renewal would find no claim, and would claim the key again.
        let _renewing = self.after_renewals().await;
        // If a record was sent, the store has rejected it.
        lock(&self.state).record_sent_at = None;
        loop {
            let (token, hand_overs) = self.token_and_hand_overs();
            self.release_others().await?;
            let held = self.store.release(&self.key, token).await?;
            if self.is_over(hand_overs, held) {
                return Ok(held);
            }
        }
    }

    /// Leaves the claim in the store as if its process had died.
    pub(crate) async fn lapse(&self) -> Result<Held, StoreError> {
        // A later renewal would revive the lease.
        lock(&self.state).phase = Phase::Lapsing;
        drop(self.after_renewals().await);
        self.end(|token| self.store.renew(&self.key, token, Duration::ZERO)).await
    }

    /// Renews the lease. Returns [`Held::No`] if the claim is lost or has ended.
    pub(crate) async fn confirm(&self) -> Result<Held, StoreError> {
        // The lock is exclusive while renewals must stop: a renewal now would revive the lease. This call shares the
        // lock with the renewals, because the handler may not poll this future for longer than the lease, and the
        // renewals must continue meanwhile.
        let _renewing = Deadline::after(self.store.limit()).bound(self.renewing.read()).await;
        loop {
            let Some(token) = self.token_to_renew() else { return Ok(Held::No) };
            let held = self.renew_or_reclaim(token).await?;
            if held == Held::Yes || self.token() == token {
                return Ok(held);
            }
        }
    }

    /// Waits until no renewal runs, and prevents new ones. The wait has a limit, because a renewal may be stuck on a
    /// blocked runtime. The store rejects such a renewal if it arrives after the end of its claim.
    async fn after_renewals(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        Deadline::after(self.store.limit()).bound(self.renewing.write()).await
    }

    /// Renews the lease, or claims the key again if the store has forgotten it. The caller holds `renewing`.
    pub(super) async fn renew_or_reclaim(&self, token: Token) -> Result<Held, StoreError> {
        let asked_at = Instant::now();
        let renewed = self.store.renew(&self.key, token, self.length).await;
        self.renewed(token, asked_at, renewed).await
    }

    /// Handles the store's answer to a renewal that was sent at `asked_at`.
    pub(super) async fn renewed(
        &self,
        token: Token,
        asked_at: Instant,
        answer: Result<Held, StoreError>,
    ) -> Result<Held, StoreError> {
        match answer? {
            Held::Yes => {
                self.confirm_at(asked_at);
                Ok(Held::Yes)
            }
            Held::No if self.may_reclaim(token) => {
                let held = self.reclaim(token).await?;
                if held == Held::Yes && !self.has_reclaimed() {
                    // The handler has ended meanwhile, and its end did not include this claim.
                    if self.store.release(&self.key, token).await.is_err() {
                        self.store.give_back(&self.key, &ClaimRequest { token, ..self.request });
                    }
                    return Ok(Held::No);
                }
                Ok(held)
            }
            Held::No => Ok(Held::No),
        }
    }

    /// Claims the key again under `token`, which the store no longer has.
    async fn reclaim(&self, token: Token) -> Result<Held, StoreError> {
        self.release_others().await?;
        let asked_at = Instant::now();
        let request = ClaimRequest { token, is_of_running: true, ..self.request };
        let Claim::Acquired { attempt } = self.store.claim(&self.key, request).await? else { return Ok(Held::No) };
        if attempt > 1 {
            lock(&self.state).has_changed_hands = true;
        }
        self.confirm_at(asked_at);
        tracing::warn!(
            scope = &*self.scope,
            store = self.store.name(),
            "the store had lost the claim of a running handler: its key is claimed again"
        );
        Ok(Held::Yes)
    }

    /// Releases claims that other requests made while the store had forgotten this one.
    async fn release_others(&self) -> Result<(), StoreError> {
        loop {
            let other = lock(&self.others).last().copied();
            let Some(other) = other else { return Ok(()) };
            let _gone_either_way = self.store.release(&self.key, other).await?;
            lock(&self.others).retain(|token| *token != other);
        }
    }
}
