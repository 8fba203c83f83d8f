//! The attribute `#[idempotent]`; use it through the crate `idempotent-runtime`.
use proc_macro::TokenStream;
/// Placeholder until the attribute lands.
#[proc_macro_attribute]
pub fn idempotent(_arguments: TokenStream, item: TokenStream) -> TokenStream {
    item
}
