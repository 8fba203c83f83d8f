//! The recorded steps of a handler. They live as long as its claim, because a step must not run again while the key
//! lives.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;

use crate::key::RecordKey;
use crate::lease::state::Lease;
use crate::store::claim::ClaimRequest;
use crate::sync::tokio::time::Instant;
use crate::sync::{lock, tokio};

/// How many steps are extended at once: a handler may have thousands of steps.
const AT_ONCE: usize = 8;

/// How long a claim lives after its last renewal.
fn life_of(request: &ClaimRequest) -> Duration {
    if request.after_crash.may_rerun() { request.ttl } else { Duration::MAX }
}

/// The steps of a lease are being extended until this is dropped: with its task, or with the runtime of its task.
struct Extending(Arc<Lease>);

impl Drop for Extending {
    fn drop(&mut self) {
        self.0.is_extending_steps.store(false, Ordering::SeqCst);
    }
}

impl Lease {
    /// Notes that a step begins. From now on, the time when the claim ends must be kept.
    pub(crate) fn begin_step(&self) {
        lock(&self.state).takes_steps = true;
    }

    /// When the claim has ended. `None` while it is held, and after it has lapsed.
    pub(crate) fn ended_at(&self) -> Option<Instant> {
        lock(&self.state).ended_at
    }

    /// How long a step lives from now on: as long as the claim, or, after the claim has ended, for the rest of its ttl.
    pub(crate) fn life_of_step(&self, ttl: Duration) -> Duration {
        match self.ended_at() {
            None => life_of(&self.request),
            Some(ended_at) => ttl.saturating_sub(ended_at.elapsed()),
        }
    }

    /// Notes that the step has a record. From now on, the record lives as long as the claim.
    pub(crate) fn keep_step(&self, step: &RecordKey) {
        lock(&self.steps).push(step.clone());
    }

    pub(crate) fn has_steps(&self) -> bool {
        !lock(&self.steps).is_empty()
    }

    /// Extends the steps after the claim was renewed. The steps of a claim that never expires do not expire either.
    pub(super) fn renew_steps(self: &Arc<Self>) {
        let is_renewed = self.request.after_crash.may_rerun() && self.has_steps();
        if is_renewed && !self.is_extending_steps.swap(true, Ordering::SeqCst) {
            let extending = Extending(Arc::clone(self));
            tokio::spawn(async move { extending.0.extend_steps(extending.0.request.ttl).await });
        }
    }

    /// The claim has ended, and its entry lives for `ttl`: its steps must not live longer.
    pub(crate) fn end_steps(self: &Arc<Self>, ttl: Duration, counted: impl Send + 'static) {
        if life_of(&self.request) > ttl {
            let this = Arc::clone(self);
            tokio::spawn(async move {
                this.extend_steps(ttl).await;
                drop(counted);
            });
        }
    }

    async fn extend_steps(&self, ttl: Duration) {
        let steps = lock(&self.steps).clone();
        stream::iter(&steps).for_each_concurrent(AT_ONCE, |step| self.extend_step(step, ttl)).await;
    }

    pub(crate) async fn extend_step(&self, step: &RecordKey, ttl: Duration) {
        if let Err(error) = self.store.persistently(|| self.store.extend(step, ttl)).await {
            tracing::warn!(
                scope = &*self.scope,
                store = self.store.name(),
                error = &error as &dyn std::error::Error,
                "the store could not change how long the result of a step is kept: the earlier time stays"
            );
        }
    }
}

#[cfg(all(test, not(shuttle), feature = "memory"))]
mod tests {
    use crate::fingerprint::Fingerprint;
    use crate::policy::scope::Scope;
    use crate::store::claim::Token;
    use crate::store::handle::StoreHandle;
    use crate::store::memory::store::MemoryStore;

    use super::*;

    #[test]
    fn steps_are_kept_again_after_the_runtime_of_their_task_ended() {
        let store = StoreHandle::new("default", Arc::new(MemoryStore::new()), Duration::MAX);
        let key = RecordKey::new("charges", None, "k");
        let request = ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([1; 32]));
        let lease = Arc::new(Lease::new(store, key.clone(), &request, Scope::Handler("charges")));
        lease.keep_step(&key.step("provider"));
        let runtime = ::tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async { lease.renew_steps() });
        assert!(lease.is_extending_steps.load(Ordering::SeqCst), "the task has not begun");
        drop(runtime);
        assert!(!lease.is_extending_steps.load(Ordering::SeqCst));
    }
}
