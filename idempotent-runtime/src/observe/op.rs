//! The operations of a store, as metrics name them.

/// An operation of a store.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(feature = "__transactions"),
    expect(dead_code, reason = "no store of the other features has transactions")
)]
pub(crate) enum Op {
    Claim,
    Renew,
    Complete,
    Release,
    /// Called by waiting requests and by operators.
    Get,
    #[cfg(feature = "inspector")]
    Purge,
    #[cfg(feature = "operate")]
    Resolve,
    /// Counts unknown outcomes.
    #[cfg(feature = "metrics")]
    Count,
    /// Called for a handler's transaction, as are `Record` and `Verify`.
    Begin,
    Record,
    Verify,
    Commit,
    RollBack,
    LookUp,
}
