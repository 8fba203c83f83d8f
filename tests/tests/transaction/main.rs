//! A handler with a `Tx`: its writes and its record commit together.
//!
//! The program runs `step` too.

mod postgres;
mod rolling_deploys;
#[path = "../step/mod.rs"]
mod step;
mod transactions;
mod transactions_that_end;
