//! The output if there are mistakes: all errors, and the user's item, so that no second, misleading error follows.

use proc_macro2::TokenStream;
use quote::quote;

pub(crate) fn fallback(errors: &syn::Error, item: &TokenStream) -> TokenStream {
    let errors = errors.to_compile_error();
    quote! { #errors #item }
}
