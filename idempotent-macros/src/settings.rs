//! The policy's literal: what the attribute says, over the runtime's defaults.

use std::time::Duration;

use idempotent_policy::LEASE;
use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, quote};

use crate::model::{Cache, Choice, Fingerprint, InFlight, Isolation, Methods, Model};
use crate::runtime::Runtime;

/// `Settings { scope: "charges", ttl: …, ..Settings::DEFAULT }`.
pub(crate) fn literal(model: &Model, function: &str) -> TokenStream {
    let private = &model.runtime;
    let mut fields = vec![field("scope", &scope(model, function))];
    let mut set = |name: &str, value: Option<TokenStream>| fields.extend(value.map(|value| field(name, &value)));
    set("has_default_scope", is(model.scope.is_none()));
    set("shared_scope", is(model.shared_scope));
    set("ttl", model.ttl.map(duration));
    set("cache", cache(model));
    set("header", model.header.as_ref().map(ToTokens::to_token_stream));
    set("key", model.key.as_ref().map(|_| quote!(#private::KeySource::Expression)));
    set("required", is(model.required));
    set("invalid_key", choice("InvalidKeyPolicy", model.invalid_key, private));
    set("methods", model.methods.as_ref().map(|given| methods(given, private)));
    set("caller", is(model.caller.is_some()));
    set("fingerprint", fingerprint(&model.fingerprint, private));
    set("in_flight", in_flight(model.in_flight, private));
    set("lease", model.lease.filter(|lease| *lease != LEASE).map(duration));
    set("after_crash", choice("AfterCrash", model.after_crash, private));
    set("isolation", model.isolation.map(|level| isolation(level, private)));
    set("max_body", model.max_body.map(ToTokens::into_token_stream));
    set("oversize", choice("Oversize", model.oversize, private));
    set("keep_headers", list(&model.keep_headers));
    set("drop_headers", list(&model.drop_headers));
    set("store", model.store.as_ref().map(|name| quote!(::core::option::Option::Some(#name))));
    set("on_store_error", choice("OnStoreError", model.on_store_error, private));
    quote!(#private::Settings { #(#fields,)* ..#private::Settings::DEFAULT })
}

/// The scope that is given, or the path of the function.
pub(crate) fn scope(model: &Model, function: &str) -> TokenStream {
    if let Some(scope) = &model.scope {
        scope.to_token_stream()
    } else {
        quote!(::core::concat!(::core::module_path!(), "::", #function))
    }
}

fn field(name: &str, value: &TokenStream) -> TokenStream {
    let name = ident(name);
    quote!(#name: #value)
}

fn ident(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}

/// The variant that is called as the word.
fn choice(of_type: &str, word: Choice, private: &Runtime) -> Option<TokenStream> {
    let word = word?;
    let (of_type, variant) = (ident(of_type), ident(&(word[..1].to_ascii_uppercase() + &word[1..])));
    Some(quote!(#private::#of_type::#variant))
}

fn in_flight(in_flight: InFlight, private: &Runtime) -> Option<TokenStream> {
    let InFlight::Wait(limit) = in_flight else { return None };
    let limit = duration(limit);
    Some(quote!(#private::InFlight::Wait(#limit)))
}

fn is(given: bool) -> Option<TokenStream> {
    given.then(|| quote!(true))
}

fn duration(duration: Duration) -> TokenStream {
    let millis = u64::try_from(duration.as_millis()).expect("the reader has checked that it is at most 100 years");
    quote!(::core::time::Duration::from_millis(#millis))
}

fn list(names: &[String]) -> Option<TokenStream> {
    (!names.is_empty()).then(|| quote!(&[#(#names),*]))
}

fn cache(model: &Model) -> Option<TokenStream> {
    let private = &model.runtime;
    if model.cache_if.is_some() {
        return Some(quote!(#private::Cache::Predicate));
    }
    Some(match model.cache.as_ref()? {
        Cache::All => quote!(#private::Cache::All),
        Cache::Statuses(ranges) => {
            let ranges = ranges.iter().map(|(low, high)| quote!((#low, #high)));
            quote!(#private::Cache::Statuses(&[#(#ranges),*]))
        }
    })
}

fn methods(methods: &Methods, private: &Runtime) -> TokenStream {
    match methods {
        Methods::Any => quote!(#private::Methods::Any),
        Methods::Only(names) => quote!(#private::Methods::Only(&[#(#names),*])),
    }
}

fn fingerprint(fingerprint: &Fingerprint, private: &Runtime) -> Option<TokenStream> {
    let source = match fingerprint {
        Fingerprint::Request => return None,
        Fingerprint::None => quote!(None),
        Fingerprint::Json => quote!(Json),
        Fingerprint::Expression(_) => quote!(Expression),
        Fingerprint::Only(_) => quote!(Only),
    };
    Some(quote!(#private::FingerprintSource::#source))
}

fn isolation(isolation: Isolation, private: &Runtime) -> TokenStream {
    let level = match isolation {
        Isolation::RepeatableRead => quote!(RepeatableRead),
        Isolation::Serializable => quote!(Serializable),
    };
    quote!(::core::option::Option::Some(#private::Isolation::#level))
}
