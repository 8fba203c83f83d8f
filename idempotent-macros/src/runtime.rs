//! The path that the expansion uses for the runtime.

use proc_macro_crate::{FoundCrate, crate_name};
use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::Path;

/// The path of the runtime's items that exist only for the expansion.
pub(crate) struct Runtime(TokenStream);

impl Runtime {
    /// Returns the path that `crate = "…"` names.
    pub(crate) fn at_path(path: &Path) -> Self {
        Self(quote!(#path::__private))
    }

    /// Returns the path that the manifest of the package names. A package that gets the runtime through another crate's
    /// re-export must set `crate = "…"`.
    pub(crate) fn of_manifest() -> Self {
        let name = match crate_name("idempotent-runtime") {
            Ok(FoundCrate::Name(name)) => name,
            Ok(FoundCrate::Itself) | Err(_) => "idempotent_runtime".to_owned(),
        };
        let name = Ident::new(&name, Span::call_site());
        Self(quote!(::#name::__private))
    }

    /// Returns the path with this span. The compiler reports errors at the span.
    pub(crate) fn located(&self, span: Span) -> Self {
        let with_span = |mut token: TokenTree| {
            token.set_span(span);
            token
        };
        Self(self.0.clone().into_iter().map(with_span).collect())
    }
}

impl ToTokens for Runtime {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        self.0.to_tokens(tokens);
    }
}
