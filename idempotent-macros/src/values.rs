//! The values of arguments, and the tokens of each in the policy.

use std::time::Duration;

use proc_macro2::{Ident, Span, TokenStream};
use quote::quote;
use syn::Expr;

use crate::constant::Value;
use crate::runtime::Runtime;

pub(crate) enum Cache {
    All,
    Statuses(Vec<(u16, u16)>),
}

/// The last argument that is extracted before the claim.
pub(crate) enum ClaimAfter {
    None,
    Argument(Ident),
}

/// The word that is chosen, unless it is the default.
pub(crate) type Choice = Option<&'static str>;

pub(crate) enum InFlight {
    Reject,
    Wait(Value<Duration>),
}

pub(crate) enum Methods {
    Any,
    Only(Vec<String>),
}

#[derive(Clone, Copy)]
pub(crate) enum Isolation {
    RepeatableRead,
    Serializable,
}

pub(crate) enum Fingerprint {
    Request,
    /// The body in its canonical form is compared.
    Json,
    None,
    /// This value replaces query and body.
    Expression(Expr),
    /// This value replaces the whole request.
    Only(Expr),
}

impl Cache {
    pub(crate) fn tokens(&self, private: &Runtime) -> TokenStream {
        match self {
            Self::All => quote!(#private::Cache::All),
            Self::Statuses(ranges) => {
                let ranges = ranges.iter().map(|(low, high)| quote!((#low, #high)));
                quote!(#private::Cache::Statuses(&[#(#ranges),*]))
            }
        }
    }
}

impl InFlight {
    pub(crate) fn tokens(&self, private: &Runtime) -> Option<TokenStream> {
        let Self::Wait(limit) = self else { return None };
        let limit = limit.tokens(private, |limit| duration(*limit));
        Some(quote!(#private::InFlight::Wait(#limit)))
    }
}

impl Methods {
    pub(crate) fn tokens(&self, private: &Runtime) -> TokenStream {
        match self {
            Self::Any => quote!(#private::Methods::Any),
            Self::Only(names) => quote!(#private::Methods::Only(&[#(#names),*])),
        }
    }
}

impl Isolation {
    pub(crate) fn tokens(self, private: &Runtime) -> TokenStream {
        let level = match self {
            Self::RepeatableRead => quote!(RepeatableRead),
            Self::Serializable => quote!(Serializable),
        };
        quote!(::core::option::Option::Some(#private::Isolation::#level))
    }
}

impl Fingerprint {
    pub(crate) fn tokens(&self, private: &Runtime) -> Option<TokenStream> {
        let source = match self {
            Self::Request => return None,
            Self::None => quote!(None),
            Self::Json => quote!(Json),
            Self::Expression(_) => quote!(Expression),
            Self::Only(_) => quote!(Only),
        };
        Some(quote!(#private::FingerprintSource::#source))
    }
}

/// Emits the variant with the name of the word.
pub(crate) fn choice(of_type: &str, word: Choice, private: &Runtime) -> Option<TokenStream> {
    let word = word?;
    let (of_type, variant) = (ident(of_type), ident(&(word[..1].to_ascii_uppercase() + &word[1..])));
    Some(quote!(#private::#of_type::#variant))
}

pub(crate) fn duration(duration: Duration) -> TokenStream {
    let millis = u64::try_from(duration.as_millis()).expect("the reader has checked that it is at most 100 years");
    quote!(::core::time::Duration::from_millis(#millis))
}

pub(crate) fn flag(given: bool) -> Option<TokenStream> {
    given.then(|| quote!(true))
}

pub(crate) fn list(names: &[String]) -> Option<TokenStream> {
    (!names.is_empty()).then(|| quote!(&[#(#names),*]))
}

/// Emits one field of the policy.
pub(crate) fn field(name: &str, value: &TokenStream) -> TokenStream {
    let name = ident(name);
    quote!(#name: #value)
}

fn ident(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}
