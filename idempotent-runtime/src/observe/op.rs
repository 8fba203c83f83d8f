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
