//! The handler's own transaction: its writes and the record of its response commit together, or not at all.
//!
//! ```text
//! Tx (extractor) ──joins──▶ Execution ──engine──▶ claim in a transaction ──▶ the handler writes through it
//!                                                                            └─▶ record inserted, COMMIT, response
//! ```

pub(crate) mod argument;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod begun;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod close_on_drop;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod connection;
pub(crate) mod contract;
pub(crate) mod error;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod faults;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod levels;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod open;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod savepoint;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod slot;
pub(crate) mod transactions;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod tx;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod watch;
