//! What the engine tells of itself in numbers; without the feature `metrics` all of it is nothing.

#[cfg(not(feature = "metrics"))]
pub(crate) use self::silent::*;
#[cfg(feature = "metrics")]
pub(crate) use crate::metrics::{InFlight, StoreMeter, UnknownGauge, lease_lost, mismatched, outcome, replayed};

/// What a store is asked for.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(any(feature = "postgres", feature = "sqlite")),
    expect(dead_code, reason = "no store of the other features has transactions")
)]
pub(crate) enum Op {
    Claim,
    Renew,
    Complete,
    Release,
    /// Of a waiter, or of an operator as that below.
    Get,
    #[cfg(feature = "inspector")]
    Purge,
    /// Of the unknown outcomes.
    #[cfg(feature = "metrics")]
    Count,
    /// Of a handler's transaction, as those below.
    Begin,
    Record,
    Verify,
    Commit,
    RollBack,
    LookUp,
}

#[cfg(not(feature = "metrics"))]
mod silent {
    use std::time::SystemTime;

    use super::Op;
    use crate::store::BoundedStore;

    pub(crate) struct InFlight;

    impl InFlight {
        pub(crate) fn enter(_scope: &'static str) -> Self {
            Self
        }
    }

    pub(crate) struct StoreMeter;

    #[expect(clippy::unused_self, reason = "its counterpart has something to keep")]
    impl StoreMeter {
        pub(crate) fn new(_store: &str) -> Self {
            Self
        }

        pub(crate) fn measure<C>(&self, _: Op, call: C) -> C {
            call
        }

        pub(crate) fn measure_now<T>(&self, _: Op, call: impl FnOnce() -> T) -> T {
            call()
        }
    }

    pub(crate) struct UnknownGauge;

    #[expect(clippy::unused_self, reason = "its counterpart has something to keep")]
    impl UnknownGauge {
        pub(crate) fn new(_: Vec<BoundedStore>) -> Self {
            Self
        }

        pub(crate) fn start(&self) {}
    }

    pub(crate) fn outcome(_scope: &'static str, _outcome: &'static str) {}

    pub(crate) fn mismatched(_scope: &'static str, _differs: &'static str, _header: &str) {}

    pub(crate) fn lease_lost(_scope: &'static str) {}

    pub(crate) fn replayed(_recorded_at: SystemTime) {}
}
