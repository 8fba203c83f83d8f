//! What OpenAPI documents say about annotated handlers.

mod aide;
mod utoipa;

#[test]
fn handlers_of_this_program_have_different_scopes() {
    idempotent_tests::assert_different_scopes();
}
