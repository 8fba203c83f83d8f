//! The validated policy. The expansion gets only this, so it cannot fail.

use std::time::Duration;

use idempotent_policy::TTL;
use proc_macro2::Ident;
use syn::Expr;

use crate::args::Arguments;
use crate::constant::{Constant, Kind, Value};
use crate::diagnostics::Diagnostics;
use crate::reader::Reader;
use crate::runtime::Runtime;

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

/// The values of the attribute, one field for each argument; `None` and `false` leave the default.
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
            keep_headers: reader.headers("keep_headers", "set-cookie"),
            drop_headers: reader.headers("drop_headers", "x-trace"),
            store: reader.name("store", Kind::STORE, "payments"),
            on_store_error: reader.choice("on_store_error", ["reject", "run"]),
            runtime: reader.runtime(),
        };
        model.check(arguments, diagnostics)
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

    /// Compares literals only, because the compiler compares constants.
    fn check_lease(&mut self, arguments: &Arguments, diagnostics: &mut Diagnostics) {
        let literal = |name, value: &Option<Value<Duration>>| match value {
            Some(Value::Literal(value)) => Some(Some(*value)),
            // A wrong `ttl` or `lease` is already reported, so no further mistake follows from it.
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
}
