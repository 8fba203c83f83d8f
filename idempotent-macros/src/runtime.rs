//! How the expansion names the runtime.

use proc_macro_crate::{FoundCrate, crate_name};
use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::Path;

/// The path of what the runtime has for the expansion alone.
pub(crate) struct Runtime(TokenStream);

impl Runtime {
    /// As `crate = "…"` says.
    pub(crate) fn at_path(path: &Path) -> Self {
        Self(quote!(#path::__private))
    }

    /// As the manifest of the package names it. One that gets it from another crate, which exports it again, must say so.
    pub(crate) fn of_manifest() -> Self {
        let name = match crate_name("idempotent-runtime") {
            Ok(FoundCrate::Name(name)) => name,
            Ok(FoundCrate::Itself) | Err(_) => "idempotent_runtime".to_owned(),
        };
        let name = Ident::new(&name, Span::call_site());
        Self(quote!(::#name::__private))
    }

    /// With this span, at which errors are reported.
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
