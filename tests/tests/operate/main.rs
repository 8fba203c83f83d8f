//! What operators use: the inspector and the documents. Also a load that must leave nothing behind.
//!
//! The program also contains the tests in `guide`.

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
