//! The installed registry: which requests find it, and what it changes in the document.

mod openapi;
mod overrides;
mod registry;

#[test]
fn handlers_of_this_program_have_different_scopes() {
    idempotent_tests::assert_different_scopes();
}
