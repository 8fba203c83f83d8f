//! The types by which threads and tasks synchronise: those of the standard library and tokio, or those of the checker
//! that runs `concurrency_tests`.
//!
//! All code whose order decides a race must use these types. Other code, such as a counter that wakes no waiters, need
//! not use them: the checker does not switch threads there.

use std::sync::{LockResult, PoisonError};

#[cfg(all(test, shuttle))]
pub(crate) use crate::concurrency_tests::primitives::*;
#[cfg(not(all(test, shuttle)))]
pub(crate) use crate::sync::real::*;

/// Locks a mutex under which no code of this crate panics.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    unpoisoned(mutex.lock())
}

/// What any other lock contains under which no code of this crate panics.
pub(crate) fn unpoisoned<T>(locked: LockResult<T>) -> T {
    locked.unwrap_or_else(PoisonError::into_inner)
}

#[cfg(not(all(test, shuttle)))]
mod real {
    pub(crate) use std::hash::RandomState as KeyHasher;
    pub(crate) use std::sync::{Mutex, MutexGuard, atomic};
    pub(crate) use std::thread_local;

    pub(crate) use ::tokio;
    pub(crate) use ::tokio::runtime::Id as RuntimeId;

    pub(crate) fn current_runtime() -> Option<RuntimeId> {
        ::tokio::runtime::Handle::try_current().ok().map(|runtime| runtime.id())
    }
    use ::tokio::runtime::{Handle, RuntimeFlavor};

    /// Returns whether the clock of this runtime is paused, as in tests. Then it differs from the system's clock.
    pub(crate) fn clock_is_paused(runtime: Option<&Handle>) -> bool {
        // Only a current-thread runtime can be paused. For the others, this check is cheaper than reading two clocks
        // for each claim.
        if runtime.is_none_or(|runtime| runtime.runtime_flavor() != RuntimeFlavor::CurrentThread) {
            return false;
        }
        let before = std::time::Instant::now();
        let of_runtime = ::tokio::time::Instant::now().into_std();
        of_runtime < before || of_runtime > std::time::Instant::now()
    }

    /// Drives `future` on a new thread of the library, which ends when the future ends. Returns that thread's runtime.
    ///
    /// # Errors
    ///
    /// If the system cannot create a thread or a timer.
    pub(crate) fn on_own_thread(
        name: &str,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<Handle> {
        let runtime = ::tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(move || runtime.block_on(future))?;
        Ok(handle)
    }
}
