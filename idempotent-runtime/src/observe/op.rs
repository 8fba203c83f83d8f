//! The operations of a store, as metrics name them.

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
    /// By a waiter, or by an operator.
    Get,
    #[cfg(feature = "inspector")]
    Purge,
    #[cfg(feature = "operate")]
    Resolve,
    /// The count of unknown outcomes.
    #[cfg(feature = "metrics")]
    Count,
    /// For a handler's transaction, as `Record` and `Verify`.
    Begin,
    Record,
    Verify,
    Commit,
    RollBack,
    LookUp,
}
