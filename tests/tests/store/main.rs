//! The four stores: the contract that all of them follow, and the promises of each store beyond the contract.

mod at_rest;
mod changed_records;
mod charges;
mod conformance;
mod conformance_notices;
mod flawed;
mod formats;
mod memory;
mod near_cache;
mod postgres;
mod properties;
mod record_round_trips;
mod redis;
mod sealing;
mod secret_takeovers;
mod secrets;
mod sqlite;
mod store_model;

#[test]
fn handlers_of_this_program_have_different_scopes() {
    idempotent_tests::assert_different_scopes();
}
