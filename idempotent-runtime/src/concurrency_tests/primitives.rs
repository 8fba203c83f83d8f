//! The checker's counterparts of what [`crate::sync`] names.

use std::hash::{BuildHasherDefault, DefaultHasher};

pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};
pub(crate) use shuttle::thread_local;

/// The same in every run: a failing schedule can be replayed only if its keys lie where they lay.
pub(crate) type KeyHasher = BuildHasherDefault<DefaultHasher>;

/// The model of tokio, with the concurrency tests' own time.
pub(crate) mod tokio {
    pub(crate) use shuttle_tokio::{runtime, select, spawn, sync, task};

    pub(crate) mod time {
        pub(crate) use crate::concurrency_tests::clock::{Instant, sleep, sleep_until};
    }
}

/// As a task among the others: what it meets is what it would meet on a thread.
pub(crate) fn on_own_thread(_: &str, future: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> {
    shuttle_tokio::spawn(future);
    Ok(())
}

/// There is one runtime.
pub(crate) type RuntimeId = ();

pub(crate) fn current_runtime() -> Option<RuntimeId> {
    None
}

/// The concurrency tests' own time is that of all tasks.
pub(crate) fn clock_is_paused(_: Option<&tokio::runtime::Handle>) -> bool {
    false
}
