//! The installed registry: which requests use it, and how it changes the OpenAPI document.

mod openapi;
mod overrides;
mod registry;
mod series;

#[test]
fn handlers_of_this_program_have_different_scopes() {
    idempotent_tests::assert_different_scopes();
}
