//! The attribute `#[idempotent]`; use it through the crate `idempotent-runtime`, which re-exports it.

mod args;
mod claim_line;
mod constant;
mod diagnostics;
mod document;
mod expand;
mod fallback;
mod handler;
mod headers;
mod methods;
mod model;
mod never_returned;
mod presence;
mod reader;
mod rewrite;
mod runtime;
mod statuses;
#[cfg(test)]
mod tests;
mod units;
mod values;

/// The attribute of a handler. The crate `idempotent-runtime` re-exports and documents it.
#[proc_macro_attribute]
pub fn idempotent(arguments: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    rewrite::rewrite(&arguments.into(), &item.into()).into()
}
