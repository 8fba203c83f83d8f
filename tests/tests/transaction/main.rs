//! A handler with a `Tx`: its writes and its record commit together.
//!
//! This test program also runs the tests in `step`.

mod bench;
mod hooks;
mod isolation;
mod postgres;
mod rolling_deploys;
mod round_trips;
mod savepoints;
mod scripted_handlers;
mod sessions;
mod statements;
#[path = "../step/mod.rs"]
mod step;
mod transactions;
mod transactions_that_end;

#[test]
fn handlers_of_this_program_have_different_scopes() {
    idempotent_tests::assert_different_scopes();
}
