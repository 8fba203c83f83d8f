//! What operators look at and rely on: the inspector, the documents, and a load that leaves nothing behind.
//!
//! The program runs `guide` too.

mod chromium;
mod documents;
#[path = "../guide/mod.rs"]
mod guide;
mod inspector;
mod soak;

#[test]
fn handlers_of_this_program_have_different_scopes() {
    idempotent_tests::assert_different_scopes();
}
