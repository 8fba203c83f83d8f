//! The validated policy: only this reaches the expansion, which cannot fail.

use std::time::Duration;

use idempotent_policy::{SHORTEST_LEASE, SHORTEST_TTL, TTL};
use syn::Expr;

use crate::args::Arguments;
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
    "methods",
    "caller",
    "fingerprint",
    "in_flight",
    "lease",
    "after_crash",
    "isolation",
    "max_body",
    "oversize",
    "keep_headers",
    "drop_headers",
    "store",
    "on_store_error",
    "crate",
];

/// What the attribute says, one field for each argument; `None` and `false` leave the default.
pub(crate) struct Model {
    pub(crate) scope: Option<String>,
    pub(crate) shared_scope: bool,
    pub(crate) ttl: Option<Duration>,
    pub(crate) cache: Option<Cache>,
    pub(crate) cache_if: Option<Expr>,
    pub(crate) header: Option<String>,
    pub(crate) key: Option<Expr>,
    pub(crate) required: bool,
    pub(crate) invalid_key: Choice,
    pub(crate) methods: Option<Methods>,
    pub(crate) caller: Option<Expr>,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) in_flight: InFlight,
    pub(crate) lease: Option<Duration>,
    pub(crate) after_crash: Choice,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) max_body: Option<usize>,
    pub(crate) oversize: Choice,
    pub(crate) keep_headers: Vec<String>,
    pub(crate) drop_headers: Vec<String>,
    pub(crate) store: Option<String>,
    pub(crate) on_store_error: Choice,
    pub(crate) runtime: Runtime,
}

pub(crate) enum Cache {
    All,
    Statuses(Vec<(u16, u16)>),
}

/// The word that is chosen, unless it is the default.
pub(crate) type Choice = Option<&'static str>;

#[derive(Clone, Copy)]
pub(crate) enum InFlight {
    Reject,
    Wait(Duration),
}

pub(crate) enum Methods {
    Any,
    Only(Vec<&'static str>),
}

#[derive(Clone, Copy)]
pub(crate) enum Isolation {
    RepeatableRead,
    Serializable,
}

pub(crate) enum Fingerprint {
    Request,
    /// The body in its canonical form.
    Json,
    None,
    /// In place of query and body.
    Expression(Expr),
    /// In place of all of the request.
    Only(Expr),
}

impl Model {
    pub(crate) fn new(arguments: &Arguments, diagnostics: &mut Diagnostics) -> Self {
        let mut reader = Reader { arguments, diagnostics };
        let model = Self {
            scope: reader.scope(),
            shared_scope: reader.flag("shared_scope"),
            ttl: reader.duration("ttl", "24h", SHORTEST_TTL),
            cache: reader.cache(),
            cache_if: reader.expression("cache_if", "is_final"),
            header: reader.header(),
            key: reader.expression("key", "order.client_token"),
            required: reader.flag("required"),
            invalid_key: reader.choice("invalid_key", ["reject", "ignore"]),
            methods: reader.methods(),
            caller: reader.expression("caller", "user.id"),
            fingerprint: reader.fingerprint(),
            in_flight: reader.in_flight(),
            lease: reader.duration("lease", "30s", SHORTEST_LEASE),
            after_crash: reader.choice("after_crash", ["rerun", "reject"]),
            isolation: reader.isolation(),
            max_body: reader.max_body(),
            oversize: reader.choice("oversize", ["reject", "rerun"]),
            keep_headers: reader.headers("keep_headers", "set-cookie"),
            drop_headers: reader.headers("drop_headers", "x-trace"),
            store: reader.name("store", "payments"),
            on_store_error: reader.choice("on_store_error", ["reject", "run"]),
            runtime: reader.runtime(),
        };
        model.check(arguments, diagnostics)
    }

    /// What one argument says about another.
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
        // A wrong `ttl` or `lease` is reported already; nothing follows from it.
        let is_read = |name, value: Option<Duration>| value.is_some() || arguments.get(name).is_none();
        if is_read("ttl", self.ttl) && is_read("lease", self.lease) {
            match (idempotent_policy::lease(self.lease, self.ttl.unwrap_or(TTL)), arguments.get("lease")) {
                (Ok(lease), _) => self.lease = Some(lease),
                (Err(wrong), argument) => {
                    let longest = humantime::format_duration(self.ttl.unwrap_or(TTL));
                    let at = argument.map(|argument| &argument.value);
                    diagnostics.error(at, format!("{wrong}; write `lease = \"{longest}\"` or less"));
                }
            }
        }
        if let (Err(wrong), Some(argument)) =
            (idempotent_policy::check_disjoint(&self.keep_headers, &self.drop_headers), arguments.get("drop_headers"))
        {
            diagnostics.error(&argument.value, wrong);
        }
        self
    }
}
