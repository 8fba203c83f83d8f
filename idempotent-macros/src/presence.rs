//! Finds the attributes that decide whether an argument exists at all.

use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::parse::{ParseStream, Parser};
use syn::punctuated::Punctuated;
use syn::{Attribute, Meta, PatType, Token};

/// Returns the conditions of an argument, without its lints. The lints go only to the argument's pattern, because the
/// generated name would not fulfil an `expect`.
pub(crate) fn presence(argument: &PatType) -> TokenStream {
    argument.attrs.iter().filter_map(condition).collect()
}

/// Returns `#[cfg(…)]`, or the part of `#[cfg_attr(…, cfg(…), allow(…))]` that is a `cfg`.
pub(crate) fn condition(attribute: &Attribute) -> Option<TokenStream> {
    let condition = condition_in(&attribute.meta)?;
    Some(quote!(#[#condition]))
}

fn condition_in(meta: &Meta) -> Option<TokenStream> {
    if meta.path().is_ident("cfg") {
        return Some(meta.to_token_stream());
    }
    let Meta::List(list) = meta else { return None };
    let (predicate, attributes) = conditional.parse2(list.tokens.clone()).ok()?;
    let conditions: Vec<_> = attributes.iter().filter_map(condition_in).collect();
    let is_condition = list.path.is_ident("cfg_attr") && !conditions.is_empty();
    is_condition.then(|| quote!(cfg_attr(#predicate, #(#conditions),*)))
}

/// Parses the predicate of a `cfg_attr`, and the attributes after it.
fn conditional(input: ParseStream<'_>) -> syn::Result<(TokenStream, Punctuated<Meta, Token![,]>)> {
    let mut predicate = TokenStream::new();
    while !input.peek(Token![,]) {
        predicate.extend([input.parse::<TokenTree>()?]);
    }
    input.parse::<Token![,]>()?;
    Ok((predicate, Punctuated::parse_terminated(input)?))
}
