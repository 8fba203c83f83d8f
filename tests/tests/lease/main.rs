//! A claim and its lease: while the handler runs, when its process dies, and when the store forgets it.
//!
//! The program runs `disconnect` too.

mod blocked_threads;
mod crashes;
#[path = "../disconnect/mod.rs"]
mod disconnect;
mod endings;
mod forgotten_claims;
mod lapsed_leases;
mod late_responses;
mod quick_handlers;
mod resolutions;
mod short_leases;
mod unknown_outcomes;

#[test]
fn handlers_of_this_program_have_different_scopes() {
    idempotent_tests::assert_different_scopes();
}
