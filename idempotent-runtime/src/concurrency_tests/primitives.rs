//! The checker's counterparts of the items in [`crate::sync`].

use std::hash::{BuildHasherDefault, DefaultHasher};

pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};
pub(crate) use shuttle::thread_local;

/// A hasher that is the same in every run: a failing schedule can be replayed only if its keys are at the same
/// positions.
pub(crate) type KeyHasher = BuildHasherDefault<DefaultHasher>;

/// The model of tokio, with the concurrency tests' own time.
pub(crate) mod tokio {
    pub(crate) use shuttle_tokio::{runtime, select, spawn, sync, task};

    pub(crate) mod time {
        pub(crate) use crate::concurrency_tests::clock::{Instant, sleep, sleep_until};
    }
}

/// Spawns a task among the others, which meets the same races as a thread would.
pub(crate) fn on_own_thread(_: &str, future: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> {
    shuttle_tokio::spawn(future);
    Ok(())
}

/// There is only one runtime.
pub(crate) type RuntimeId = ();

pub(crate) fn current_runtime() -> Option<RuntimeId> {
    None
}

/// Returns false, because the concurrency tests' own clock is the clock of all tasks.
pub(crate) fn clock_is_paused(_: Option<&tokio::runtime::Handle>) -> bool {
    false
}
