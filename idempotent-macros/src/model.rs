//! The validated policy. The expansion gets only this policy, so the expansion cannot fail.

use std::time::Duration;

use idempotent_policy::{LEASE, TTL};
use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::Expr;

use crate::args::Arguments;
use crate::constant::{Constant, Kind, Value};
use crate::diagnostics::Diagnostics;
use crate::reader::Reader;
use crate::runtime::Runtime;
use crate::values::{
    Cache, Choice, ClaimAfter, Fingerprint, InFlight, Isolation, Methods, choice, duration, field, flag, list,
};

/// The names of all arguments.
pub(crate) const ARGUMENTS: &[&str] = &[
    "scope",
    "shared_scope",
    "ttl",
    "cache",
    "cache_if",
    "header",
    "key",
    "required",
    "invalid_key",
    "min_key_length",
    "key_format",
    "methods",
    "caller",
    "claim_after",
    "fingerprint",
    "in_flight",
    "lease",
    "after_crash",
    "isolation",
    "stream",
    "max_body",
    "oversize",
    "keep_headers",
    "drop_headers",
    "store",
    "on_store_error",
    "crate",
];

/// The values of the attribute, one field for each argument. `None` and `false` mean the default.
pub(crate) struct Model {
    pub(crate) scope: Option<Value<String>>,
    pub(crate) shared_scope: bool,
    pub(crate) ttl: Option<Value<Duration>>,
    pub(crate) cache: Option<Cache>,
    pub(crate) cache_if: Option<Expr>,
    pub(crate) header: Option<String>,
    pub(crate) key: Option<Expr>,
    pub(crate) required: bool,
    pub(crate) invalid_key: Choice,
    pub(crate) min_key_length: Option<usize>,
    pub(crate) key_format: Choice,
    pub(crate) methods: Option<Methods>,
    pub(crate) caller: Option<Expr>,
    pub(crate) claim_after: Option<ClaimAfter>,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) in_flight: InFlight,
    pub(crate) lease: Option<Value<Duration>>,
    pub(crate) after_crash: Choice,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) stream: Choice,
    pub(crate) max_body: Option<Value<usize>>,
    pub(crate) oversize: Choice,
    pub(crate) keep_headers: Vec<String>,
    pub(crate) drop_headers: Vec<String>,
    pub(crate) store: Option<Value<String>>,
    pub(crate) on_store_error: Choice,
    pub(crate) runtime: Runtime,
}

impl Model {
    pub(crate) fn new(arguments: &Arguments, diagnostics: &mut Diagnostics) -> Self {
        let mut reader = Reader { arguments, diagnostics };
        let model = Self {
            scope: reader.name("scope", Kind::SCOPE, "charges"),
            shared_scope: reader.flag("shared_scope"),
            ttl: reader.ttl(),
            cache: reader.cache(),
            cache_if: reader.expression("cache_if", "is_final"),
            header: reader.header(),
            key: reader.expression("key", "order.client_token"),
            required: reader.flag("required"),
            invalid_key: reader.choice("invalid_key", ["reject", "ignore"]),
            min_key_length: reader.number("min_key_length", "characters", "16"),
            key_format: reader.choice("key_format", ["any", "uuid"]),
            methods: reader.methods(),
            caller: reader.expression("caller", "user.id"),
            claim_after: reader.claim_after(),
            fingerprint: reader.fingerprint(),
            in_flight: reader.in_flight(),
            lease: reader.lease(),
            after_crash: reader.choice("after_crash", ["rerun", "reject"]),
            isolation: reader.isolation(),
            stream: reader.choice("stream", ["record", "pass"]),
            max_body: reader.max_body(),
            oversize: reader.choice("oversize", ["reject", "rerun"]),
            keep_headers: reader.keep_headers(),
            drop_headers: reader.drop_headers(),
            store: reader.name("store", Kind::STORE, "payments"),
            on_store_error: reader.choice("on_store_error", ["reject", "run"]),
            runtime: reader.runtime(),
        };
        model.check(arguments, diagnostics)
    }

    /// Emits the policy over the runtime's defaults: `Settings { scope: "charges", ttl: …, ..Settings::DEFAULT }`.
    pub(crate) fn literal(&self, function: &str) -> TokenStream {
        let private = &self.runtime;
        let mut fields = vec![field("scope", &self.scope_path(function))];
        let mut set = |name: &str, value: Option<TokenStream>| fields.extend(value.map(|value| field(name, &value)));
        set("has_default_scope", flag(self.scope.is_none()));
        set("shared_scope", flag(self.shared_scope));
        set("ttl", self.ttl.as_ref().map(|ttl| ttl.tokens(private, |ttl| duration(*ttl))));
        let predicate = self.cache_if.as_ref().map(|_| quote!(#private::Cache::Predicate));
        set("cache", predicate.or_else(|| Some(self.cache.as_ref()?.tokens(private))));
        set("header", self.header.as_ref().map(ToTokens::to_token_stream));
        set("key", self.key.as_ref().map(|_| quote!(#private::KeySource::Expression)));
        set("required", flag(self.required));
        set("invalid_key", choice("InvalidKeyPolicy", self.invalid_key, private));
        set("min_key_length", self.min_key_length.map(ToTokens::into_token_stream));
        set("key_format", choice("KeyFormat", self.key_format, private));
        set("methods", self.methods.as_ref().map(|methods| methods.tokens(private)));
        set("caller", flag(self.caller.is_some()));
        set("fingerprint", self.fingerprint.tokens(private));
        set("in_flight", self.in_flight.tokens(private));
        let lease = self.lease.as_ref().filter(|lease| !matches!(lease, Value::Literal(lease) if *lease == LEASE));
        set("lease", lease.map(|lease| lease.tokens(private, |lease| duration(*lease))));
        set("after_crash", choice("AfterCrash", self.after_crash, private));
        set("isolation", self.isolation.map(|level| level.tokens(private)));
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

    /// Checks the rules between two arguments.
    fn check(mut self, arguments: &Arguments, diagnostics: &mut Diagnostics) -> Self {
        if let (None, Some(shared), true) = (arguments.get("scope"), arguments.get("shared_scope"), self.shared_scope) {
            let message = "`shared_scope` needs the scope that is shared; write `scope = \"charges\", shared_scope`";
            diagnostics.error(&shared.name, message);
        }
        if let (Some(_), Some(cache_if)) = (arguments.get("cache"), arguments.get("cache_if")) {
            diagnostics.error(&cache_if.name, "`cache_if` decides alone; remove `cache` or `cache_if`");
        }
        if let (Some(_), Some(header)) = (arguments.get("key"), arguments.get("header")) {
            diagnostics.error(&header.name, "`key` replaces the header; remove `header` or `key`");
        }
        if let (Some(length), Some(argument)) = (self.min_key_length, arguments.get("min_key_length"))
            && let Err(wrong) = idempotent_policy::check_min_key_length(length, self.key_format.is_some())
        {
            diagnostics.error(&argument.value, format!("`min_key_length` {wrong}; write `min_key_length = 16`"));
        }
        self.check_lease(arguments, diagnostics);
        if let (Err(wrong), Some(argument)) =
            (idempotent_policy::check_disjoint(&self.keep_headers, &self.drop_headers), arguments.get("drop_headers"))
        {
            diagnostics.error(&argument.value, wrong);
        }
        self
    }

    /// Compares `lease` with `ttl` if both are literals. The compiler compares constants.
    fn check_lease(&mut self, arguments: &Arguments, diagnostics: &mut Diagnostics) {
        let literal = |name, value: &Option<Value<Duration>>| match value {
            Some(Value::Literal(value)) => Some(Some(*value)),
            // A wrong `ttl` or `lease` is already reported, so it causes no further message.
            None if arguments.get(name).is_none() => Some(None),
            None | Some(Value::Constant(_)) => None,
        };
        let (Some(ttl), Some(lease)) = (literal("ttl", &self.ttl), literal("lease", &self.lease)) else { return };
        let ttl = ttl.unwrap_or(TTL);
        match idempotent_policy::lease(lease, ttl) {
            Ok(lease) => self.lease = Some(Value::Literal(lease)),
            Err(wrong) => {
                let at = arguments.get("lease").map(|argument| &argument.value);
                let longest = humantime::format_duration(ttl);
                diagnostics.error(at, format!("`lease` {wrong}; write `lease = \"{longest}\"` or less"));
            }
        }
    }

    /// Returns whether the policy has its own rules for keys or methods. Then only the guard knows which bodies it needs.
    pub(crate) fn has_own_rules_for_keys(&self) -> bool {
        let of_keys = self.min_key_length.is_some() || self.key_format.is_some() || self.invalid_key.is_some();
        of_keys || self.header.is_some() || self.key.is_some() || self.methods.is_some()
    }

    /// Returns the values that the compiler evaluates, with the names of their arguments.
    pub(crate) fn constants(&self) -> impl Iterator<Item = (&'static str, &Constant)> {
        let wait = if let InFlight::Wait(limit) = &self.in_flight { limit.constant() } else { None };
        let all = [
            ("scope", self.scope.as_ref().and_then(Value::constant)),
            ("ttl", self.ttl.as_ref().and_then(Value::constant)),
            ("wait", wait),
            ("lease", self.lease.as_ref().and_then(Value::constant)),
            ("max_body", self.max_body.as_ref().and_then(Value::constant)),
            ("store", self.store.as_ref().and_then(Value::constant)),
        ];
        all.into_iter().filter_map(|(name, constant)| Some((name, constant?)))
    }

    /// Returns the expressions that are evaluated before the claim, with the names of their arguments. The key comes
    /// first, because the others matter only for a request with a key.
    pub(crate) fn expressions(&self) -> impl Iterator<Item = (&'static str, &Expr)> {
        let fingerprint = match &self.fingerprint {
            Fingerprint::Expression(value) | Fingerprint::Only(value) => Some(value),
            Fingerprint::Request | Fingerprint::Json | Fingerprint::None => None,
        };
        let all = [
            ("key", self.key.as_ref()),
            ("caller", self.caller.as_ref()),
            ("fingerprint", fingerprint),
            ("cache_if", self.cache_if.as_ref()),
        ];
        all.into_iter().filter_map(|(name, expression)| Some((name, expression?)))
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
