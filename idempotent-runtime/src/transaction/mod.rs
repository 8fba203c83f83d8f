//! The handler's own transaction: its writes and the record of its response commit together, or not at all.
//!
//! ```text
//! Tx (extractor) ──joins──▶ Execution ──engine──▶ claim in a transaction ──▶ the handler writes through it
//!                                                                            └─▶ record inserted, COMMIT, response
//! ```

pub(crate) mod argument;
#[cfg(feature = "__transactions")]
pub(crate) mod begun;
#[cfg(feature = "__transactions")]
pub(crate) mod close_on_drop;
#[cfg(feature = "__transactions")]
pub(crate) mod connection;
pub(crate) mod contract;
pub(crate) mod error;
#[cfg(feature = "__transactions")]
pub(crate) mod faults;
#[cfg(feature = "__transactions")]
pub(crate) mod levels;
#[cfg(feature = "__transactions")]
pub(crate) mod open;
#[cfg(feature = "__transactions")]
pub(crate) mod savepoint;
#[cfg(feature = "__transactions")]
pub(crate) mod slot;
#[cfg(feature = "__transactions")]
pub(crate) mod transactional_store;
pub(crate) mod transactions;
#[cfg(feature = "__transactions")]
pub(crate) mod tx;
#[cfg(feature = "__transactions")]
pub(crate) mod watch;
