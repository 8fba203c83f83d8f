//! The recorded steps of a handler. The steps live as long as its claim, because a step must not run again while the
//! key lives.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;

use crate::deadline::Deadline;
use crate::key::RecordKey;
use crate::lease::ended_claim::EndedClaim;
use crate::lease::state::Lease;
use crate::store::claim::{ClaimRequest, Held};
use crate::store::entry::{Entry, EntryState};
use crate::sync::tokio::time::Instant;
use crate::sync::{lock, tokio};

/// The most steps that are extended at the same time: a handler may have thousands of steps.
const AT_ONCE: usize = 8;

/// Returns how long a claim lives after its last renewal.
fn life_of(request: &ClaimRequest) -> Duration {
    if request.after_crash.may_rerun() { request.ttl } else { Duration::MAX }
}

impl Lease {
    /// Notes that a step begins, which lives for `ttl` after the end of the claim.
    pub(crate) fn begin_step(&self, ttl: Duration) {
        lock(&self.state).ttl_of_steps = Some(ttl);
    }

    fn ended(&self) -> Option<EndedClaim> {
        lock(&self.state).ended
    }

    /// Returns whether the claim has ended. A claim that has lapsed does not count as ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended().is_some()
    }

    /// Returns how long a step lives from now on: as long as the claim, or, after the claim has ended, for the rest of
    /// its ttl.
    pub(crate) fn life_of_step(&self) -> Duration {
        self.ended().map_or(life_of(&self.request), |ended| ended.life_of_step(self.store.limit()))
    }

    /// Notes that the step has a record. From now on, that record lives as long as the claim.
    pub(crate) fn keep_step(&self, step: &RecordKey) {
        lock(&self.steps).push(step.clone());
    }

    pub(crate) fn has_steps(&self) -> bool {
        !lock(&self.steps).is_empty()
    }

    /// Extends the steps after the claim was renewed. The steps of a claim that never expires do not expire either.
    pub(super) fn renew_steps(self: &Arc<Self>) {
        if self.request.after_crash.may_rerun() && self.has_steps() && self.extending_steps.try_lock().is_ok() {
            let this = Arc::clone(self);
            tokio::spawn(async move {
                if let Ok(_extending) = this.extending_steps.try_lock() {
                    this.extend_steps().await;
                }
            });
        }
    }

    /// Limits the lifetime of the steps after the claim has ended: the steps must not live longer than the record of
    /// the key. `held` is the store's answer to the end of the claim. `counted` is dropped when the store has the new
    /// lifetimes.
    pub(crate) fn end_steps(self: &Arc<Self>, held: Held, counted: impl Send + 'static) {
        let Some(ended) = self.ended() else { return };
        let is_lost = held == Held::No;
        if is_lost || life_of(&self.request) > ended.ttl || self.extending_steps.try_lock().is_err() {
            let this = Arc::clone(self);
            tokio::spawn(async move {
                // A renewal that extends the steps at this moment corrects their lifetime itself. The wait has a limit,
                // because the renewal may be stuck on a blocked runtime.
                let _extending = Deadline::after(this.store.limit()).bound(this.extending_steps.lock()).await;
                // After a lost claim, the attempt that has the key may need the steps until it has a record.
                if !is_lost || this.finds_record().await || !this.request.after_crash.may_rerun() {
                    this.extend_steps().await;
                }
                drop(counted);
            });
        }
    }

    /// Returns whether another attempt has recorded a response. If so, the steps of this attempt live as long as that
    /// record.
    async fn finds_record(&self) -> bool {
        let since = Instant::now();
        let Ok(Some(Entry { state: EntryState::Completed { .. }, expires_in: Some(ttl), .. })) =
            self.store.get(&self.key).await
        else {
            return false;
        };
        lock(&self.state).ended = Some(EndedClaim::with_record(since, ttl));
        true
    }

    async fn extend_steps(&self) {
        let steps = lock(&self.steps).clone();
        stream::iter(&steps).for_each_concurrent(AT_ONCE, |step| self.extend_step(step)).await;
    }

    /// Sets in the store how long the step lives from now on. Sets the lifetime again if the claim has ended meanwhile,
    /// or if the store was too slow.
    pub(crate) async fn extend_step(&self, step: &RecordKey) {
        let extend = || async {
            let life = self.life_of_step();
            self.store.extend(step, life).await.map(|_| life)
        };
        loop {
            let had_ended = self.has_ended();
            match self.store.persistently(extend).await {
                Ok(life) => {
                    let ended = self.ended();
                    let is_too_long = ended.is_some_and(|ended| ended.is_outlived_by(life));
                    if !is_too_long && ended.is_some() == had_ended {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        scope = &*self.scope,
                        store = self.store.name(),
                        error = &error as &dyn std::error::Error,
                        "the store could not change how long the result of a step is kept: the earlier time stays"
                    );
                    return;
                }
            }
        }
    }
}

#[cfg(all(test, not(shuttle), feature = "memory"))]
mod tests {
    use http::StatusCode;

    use crate::fingerprint::Fingerprint;
    use crate::policy::scope::Scope;
    use crate::record::{Record, RecordedBody, now_in_millis};
    use crate::store::claim::Token;
    use crate::store::contract::{Store as _, StoreAdmin as _};
    use crate::store::handle::StoreHandle;
    use crate::store::memory::store::MemoryStore;

    use super::*;

    fn record() -> Record {
        Record::new(
            StatusCode::OK,
            Vec::new(),
            RecordedBody::Whole("7".into()),
            Fingerprint::from_bytes([1; 32]),
            now_in_millis(),
        )
    }

    fn lease_with_a_step(store: MemoryStore) -> (Arc<Lease>, RecordKey) {
        let store = StoreHandle::new("default", Arc::new(store), Duration::from_secs(2));
        let key = RecordKey::new("charges", None, "k");
        let request = ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([1; 32]));
        let lease = Arc::new(Lease::new(store, key.clone(), &request, Scope::Handler("charges"), Instant::now()));
        let step = key.step("provider");
        lease.keep_step(&step);
        (lease, step)
    }

    #[test]
    fn steps_are_kept_again_after_the_runtime_of_their_task_ended() {
        let store = MemoryStore::new();
        let (lease, step) = lease_with_a_step(store.clone());
        let request = lease.request.with_token(Token::unique());
        let runtime = || ::tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let left = async || store.get(&step).await.expect("it answers").and_then(|entry| entry.expires_in);
        let first = runtime();
        first.block_on(async {
            store.claim(&step, request).await.expect("it answers");
            let completed = store.complete(&step, request.token, record(), Duration::from_secs(1)).await;
            assert_eq!(completed.expect("it answers"), Held::Yes);
            lease.renew_steps();
        });
        // The task has not begun.
        drop(first);
        runtime().block_on(async {
            assert!(left().await <= Some(Duration::from_secs(1)));
            lease.renew_steps();
            while left().await <= Some(Duration::from_secs(1)) {
                ::tokio::task::yield_now().await;
            }
        });
    }
}
