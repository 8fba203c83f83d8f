//! Delivers a batch of renewals to a runtime that is alive.
//!
//! A store's connections belong to the runtime that opened them. This is usually the runtime in which the key was
//! claimed, so that runtime is tried first. The renewal is spawned from outside of that runtime, which wakes one of its
//! threads even if others are blocked. If the renewal does not begin, all threads of the runtime are blocked, no thread
//! drives the runtime, or the runtime has ended. Then another runtime of the process renews, and finally a thread of
//! the library. Each store has its own thread for this: if a store blocks its thread, the leases of the other stores
//! are still renewed.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::lease::state::Lease;

#[cfg(all(test, shuttle))]
pub(super) use crate::lease::delivery::checked::*;
#[cfg(not(all(test, shuttle)))]
pub(super) use crate::lease::delivery::real::*;

/// The renewals that are delivered to a runtime.
pub(super) trait Renewing: Send + Sync + 'static {
    fn runtimes(&self) -> &Runtimes;

    /// Renews these leases, all of which belong to one store.
    fn renew(self: Arc<Self>, leases: Vec<Arc<Lease>>) -> BoxFuture<'static, ()>;
}

#[cfg(not(all(test, shuttle)))]
mod real {
    use std::collections::HashMap;
    use std::io;
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::runtime::Handle;
    use tokio::sync::oneshot;
    use tokio::time::{Instant, timeout};

    use crate::lease::delivery::Renewing;
    use crate::lease::state::Lease;
    use crate::store::handle::StoreHandle;
    use crate::sync::{Mutex, RuntimeId, lock, on_own_thread};

    pub(in super::super) fn runtime_of(lease: &Lease) -> Option<RuntimeId> {
        lease.runtime.as_ref().map(Handle::id)
    }

    /// How long a runtime is skipped in which a renewal did not begin.
    const PASSED_OVER: Duration = Duration::from_secs(1);

    /// What is known about the runtimes of this process.
    #[derive(Default)]
    pub(in super::super) struct Runtimes {
        /// The runtime in which a key was claimed last.
        last: Mutex<Option<Handle>>,
        passed_over_until: Mutex<HashMap<RuntimeId, Instant>>,
        last_resorts: Mutex<HashMap<usize, LastResort>>,
    }

    /// A thread that renews the leases of one store if no runtime of the application does. The thread lives until this
    /// value is dropped, because connections that the store opens belong to its runtime.
    struct LastResort {
        runtime: Handle,
        _ends: oneshot::Sender<()>,
    }

    impl LastResort {
        fn start() -> io::Result<Self> {
            let (ends, ended) = oneshot::channel::<()>();
            let until_ended = async {
                let _ = ended.await;
            };
            let runtime = on_own_thread("idempotent-renewals", until_ended)?;
            Ok(Self { runtime, _ends: ends })
        }
    }

    impl Runtimes {
        pub(in super::super) fn saw(&self, runtime: Option<&Handle>) {
            let mut last = lock(&self.last);
            if last.as_ref().map(Handle::id) != runtime.map(Handle::id) {
                *last = runtime.cloned();
            }
        }

        fn may_begin(&self, runtime: &Handle) -> bool {
            lock(&self.passed_over_until).get(&runtime.id()).is_none_or(|&until| Instant::now() >= until)
        }

        fn did_not_begin(&self, runtime: &Handle) {
            let mut passed_over = lock(&self.passed_over_until);
            let now = Instant::now();
            passed_over.retain(|_, until| *until > now);
            passed_over.insert(runtime.id(), now + PASSED_OVER);
        }

        fn last_resort(&self, store: &StoreHandle) -> io::Result<Handle> {
            let mut last_resorts = lock(&self.last_resorts);
            if let Some(last_resort) = last_resorts.get(&store.address()) {
                return Ok(last_resort.runtime.clone());
            }
            let last_resort = LastResort::start()?;
            let runtime = last_resort.runtime.clone();
            last_resorts.insert(store.address(), last_resort);
            Ok(runtime)
        }

        /// Returns the runtimes in the order in which they are tried.
        fn candidates(&self, own: Option<Handle>) -> impl Iterator<Item = Handle> {
            let own_id = own.as_ref().map(Handle::id);
            let other = lock(&self.last).clone().filter(|other| Some(other.id()) != own_id);
            own.into_iter().chain(other)
        }
    }

    /// Renews leases of one store and one runtime. Returns when the leases were renewed, or when the last attempt to
    /// renew them has ended.
    pub(in super::super) async fn deliver<R: Renewing>(renewing: &Arc<R>, leases: Vec<Arc<Lease>>) {
        let Some(first) = leases.first() else { return };
        let (store, own) = (first.store.clone(), first.runtime.clone());
        let shortest = leases.iter().map(|lease| lease.length).min().unwrap_or_default();
        for runtime in renewing.runtimes().candidates(own) {
            if !renewing.runtimes().may_begin(&runtime) {
                continue;
            }
            let (started, has_started) = oneshot::channel();
            let (done, is_done) = oneshot::channel();
            let task = {
                let renewed = Arc::clone(renewing).renew(leases.clone());
                runtime.spawn(async move {
                    // If the receiver is gone, the wait has timed out, and another runtime renews.
                    if started.send(()).is_ok() {
                        renewed.await;
                        let _ = done.send(());
                    }
                })
            };
            // A runtime that has ended drops the task, and the task's sender with it.
            if !matches!(timeout(shortest / 12, has_started).await, Ok(Ok(()))) {
                task.abort();
                renewing.runtimes().did_not_begin(&runtime);
                continue;
            }
            // The store has 5/12 of the lease to answer. The runtime may have become blocked meanwhile. A second
            // renewal does no harm.
            if matches!(timeout(shortest / 2, is_done).await, Ok(Ok(()))) {
                return;
            }
            // There is no time left to try another runtime, which may be blocked too.
            break;
        }
        match renewing.runtimes().last_resort(&store) {
            Ok(runtime) => {
                // The next batch waits for this one: if this thread is blocked, a new thread would block too.
                let _ = runtime.spawn(Arc::clone(renewing).renew(leases)).await;
            }
            Err(error) => {
                tracing::error!(
                    %error,
                    store = store.name(),
                    "the fallback thread that renews leases cannot be started: another thread renews them"
                );
                Arc::clone(renewing).renew(leases).await;
            }
        }
    }
}

/// Under the concurrency checker there is one runtime, which is always driven.
#[cfg(all(test, shuttle))]
mod checked {
    use std::sync::Arc;

    use crate::lease::delivery::Renewing;
    use crate::lease::state::Lease;
    use crate::sync::RuntimeId;
    use crate::sync::tokio::runtime::Handle;

    pub(in super::super) fn runtime_of(_: &Lease) -> Option<RuntimeId> {
        None
    }

    #[derive(Default)]
    pub(in super::super) struct Runtimes;

    impl Runtimes {
        pub(in super::super) fn saw(&self, _: Option<&Handle>) {}
    }

    pub(in super::super) async fn deliver<R: Renewing>(renewing: &Arc<R>, batch: Vec<Arc<Lease>>) {
        Arc::clone(renewing).renew(batch).await;
    }
}
