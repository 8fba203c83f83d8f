//! Emits the validated policy as a literal.

use std::time::Duration;

use idempotent_policy::LEASE;
use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};

use crate::constant::{Constant, Value};
use crate::model::{Cache, Choice, Fingerprint, InFlight, Isolation, Methods, Model};
use crate::runtime::Runtime;

impl Model {
    /// Emits the policy over the runtime's defaults: `Settings { scope: "charges", ttl: …, ..Settings::DEFAULT }`.
    pub(crate) fn literal(&self, function: &str) -> TokenStream {
        let private = &self.runtime;
        let mut fields = vec![field("scope", &self.scope_path(function))];
        let mut set = |name: &str, value: Option<TokenStream>| fields.extend(value.map(|value| field(name, &value)));
        set("has_default_scope", is(self.scope.is_none()));
        set("shared_scope", is(self.shared_scope));
        set("ttl", self.ttl.as_ref().map(|ttl| ttl.tokens(private, |ttl| duration(*ttl))));
        set("cache", cache(self));
        set("header", self.header.as_ref().map(ToTokens::to_token_stream));
        set("key", self.key.as_ref().map(|_| quote!(#private::KeySource::Expression)));
        set("required", is(self.required));
        set("invalid_key", choice("InvalidKeyPolicy", self.invalid_key, private));
        set("min_key_length", self.min_key_length.map(ToTokens::into_token_stream));
        set("key_format", choice("KeyFormat", self.key_format, private));
        set("methods", self.methods.as_ref().map(|given| methods(given, private)));
        set("caller", is(self.caller.is_some()));
        set("fingerprint", fingerprint(&self.fingerprint, private));
        set("in_flight", in_flight(&self.in_flight, private));
        let lease = self.lease.as_ref().filter(|lease| !matches!(lease, Value::Literal(lease) if *lease == LEASE));
        set("lease", lease.map(|lease| lease.tokens(private, |lease| duration(*lease))));
        set("after_crash", choice("AfterCrash", self.after_crash, private));
        set("isolation", self.isolation.map(|level| isolation(level, private)));
        set("stream", choice("Stream", self.stream, private));
        set("max_body", self.max_body.as_ref().map(|size| size.tokens(private, ToTokens::to_token_stream)));
        set("oversize", choice("Oversize", self.oversize, private));
        set("keep_headers", list(&self.keep_headers));
        set("drop_headers", list(&self.drop_headers));
        let store = self.store.as_ref().map(|name| name.tokens(private, ToTokens::to_token_stream));
        set("store", store.map(|name| quote!(::core::option::Option::Some(#name))));
        set("on_store_error", choice("OnStoreError", self.on_store_error, private));
        self.fit_lease(quote!(#private::Settings { #(#fields,)* ..#private::Settings::DEFAULT }))
    }

    /// Emits the scope that is given, or the path of the function.
    pub(crate) fn scope_path(&self, function: &str) -> TokenStream {
        if let Some(scope) = &self.scope {
            scope.tokens(&self.runtime, ToTokens::to_token_stream)
        } else {
            quote!(::core::concat!(::core::module_path!(), "::", #function))
        }
    }

    /// Makes the lease fit the ttl, if one of them is a constant that the compiler evaluates.
    fn fit_lease(&self, settings: TokenStream) -> TokenStream {
        let [ttl, lease] = [&self.ttl, &self.lease].map(|value| value.as_ref().and_then(Value::constant));
        let Some(at) = lease.or(ttl).map(Constant::span) else { return settings };
        let private = self.runtime.located(at);
        let with_lease = if self.lease.is_some() { "with_lease_within_ttl" } else { "with_default_lease" };
        let with_lease = Ident::new(with_lease, at);
        quote_spanned!(at=> #private::Settings::#with_lease(#settings))
    }
}

fn field(name: &str, value: &TokenStream) -> TokenStream {
    let name = ident(name);
    quote!(#name: #value)
}

fn ident(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}

/// Emits the variant with the name of the word.
fn choice(of_type: &str, word: Choice, private: &Runtime) -> Option<TokenStream> {
    let word = word?;
    let (of_type, variant) = (ident(of_type), ident(&(word[..1].to_ascii_uppercase() + &word[1..])));
    Some(quote!(#private::#of_type::#variant))
}

fn in_flight(in_flight: &InFlight, private: &Runtime) -> Option<TokenStream> {
    let InFlight::Wait(limit) = in_flight else { return None };
    let limit = limit.tokens(private, |limit| duration(*limit));
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
