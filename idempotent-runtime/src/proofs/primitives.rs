//! The checker's counterparts of what [`crate::sync`] names.

use std::hash::{BuildHasherDefault, DefaultHasher};

pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};

/// The same in every run: a failing schedule can be replayed only if its keys lie where they lay.
pub(crate) type KeyHasher = BuildHasherDefault<DefaultHasher>;

/// The model of tokio, with the proofs' own time.
pub(crate) mod tokio {
    pub(crate) use shuttle_tokio::{runtime, select, spawn, sync, task};

    pub(crate) mod time {
        pub(crate) use crate::proofs::clock::{Instant, sleep, sleep_until};
    }
}
