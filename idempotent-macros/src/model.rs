//! The validated policy: only this reaches the expansion, which cannot fail.

use std::time::Duration;

use syn::Expr;

use crate::args::Arguments;
use crate::diagnostics::Diagnostics;
use crate::reader::Reader;

/// What the attribute says; `None` and `false` leave the default.
#[expect(clippy::struct_excessive_bools, reason = "each is one argument with two values")]
pub(crate) struct Model {
    pub(crate) scope: Option<String>,
    pub(crate) shares_scope: bool,
    pub(crate) ttl_millis: Option<u64>,
    pub(crate) cache: Option<Cache>,
    pub(crate) cache_if: Option<Expr>,
    pub(crate) header: Option<String>,
    pub(crate) key: Option<Expr>,
    pub(crate) is_required: bool,
    pub(crate) ignores_invalid_key: bool,
    pub(crate) methods: Option<Methods>,
    pub(crate) caller: Option<Expr>,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) wait_millis: Option<u64>,
    pub(crate) lease_millis: Option<u64>,
    pub(crate) rejects_after_crash: bool,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) max_body: Option<usize>,
    pub(crate) reruns_oversize: bool,
    pub(crate) keep_headers: Vec<String>,
    pub(crate) drop_headers: Vec<String>,
    pub(crate) store: Option<String>,
    pub(crate) runs_on_store_error: bool,
}

pub(crate) enum Cache {
    All,
    Statuses(Vec<(u16, u16)>),
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

const DEFAULT_TTL_MILLIS: u64 = 24 * 60 * 60 * 1000;
const DEFAULT_LEASE_MILLIS: u64 = 30 * 1000;

impl Model {
    pub(crate) fn new(arguments: &Arguments, diagnostics: &mut Diagnostics) -> Self {
        let mut reader = Reader { arguments, diagnostics };
        let model = Self {
            scope: reader.scope(),
            shares_scope: reader.flag("shared_scope"),
            ttl_millis: reader.duration("ttl", "24h", 1000),
            cache: reader.cache(),
            cache_if: reader.expression("cache_if", "is_final"),
            header: reader.header(),
            key: reader.expression("key", "order.client_token"),
            is_required: reader.flag("required"),
            ignores_invalid_key: reader.choice("invalid_key", ["reject", "ignore"]),
            methods: reader.methods(),
            caller: reader.expression("caller", "user.id"),
            fingerprint: reader.fingerprint(),
            wait_millis: reader.wait(),
            lease_millis: reader.duration("lease", "30s", 100),
            rejects_after_crash: reader.choice("after_crash", ["rerun", "reject"]),
            isolation: reader.isolation(),
            max_body: reader.max_body(),
            reruns_oversize: reader.choice("oversize", ["reject", "rerun"]),
            keep_headers: reader.headers("keep_headers", "set-cookie"),
            drop_headers: reader.headers("drop_headers", "x-trace"),
            store: reader.name("store", "payments"),
            runs_on_store_error: reader.choice("on_store_error", ["reject", "run"]),
        };
        model.check(arguments, diagnostics)
    }

    /// What one argument says about another.
    fn check(mut self, arguments: &Arguments, diagnostics: &mut Diagnostics) -> Self {
        if let (None, Some(shared), true) = (arguments.get("scope"), arguments.get("shared_scope"), self.shares_scope) {
            let message = "`shared_scope` needs the scope that is shared; write `scope = \"charges\", shared_scope`";
            diagnostics.error(&shared.name, message);
        }
        if let (Some(_), Some(cache_if)) = (arguments.get("cache"), arguments.get("cache_if")) {
            diagnostics.error(&cache_if.name, "`cache_if` decides alone; remove `cache` or `cache_if`");
        }
        if let (Some(_), Some(header)) = (arguments.get("key"), arguments.get("header")) {
            diagnostics.error(&header.name, "`key` replaces the header; remove `header` or `key`");
        }
        // A wrong `ttl` is reported already; nothing follows from it for the lease.
        let ttl = self.ttl_millis.or(arguments.get("ttl").is_none().then_some(DEFAULT_TTL_MILLIS)).unwrap_or(u64::MAX);
        match (self.lease_millis, arguments.get("lease")) {
            (Some(lease), Some(argument)) if lease > ttl => {
                let longest = humantime::format_duration(Duration::from_millis(ttl));
                let message = format!(
                    "`lease` must not be longer than `ttl`: a claim would outlive its memory; write `lease = \"{longest}\"` or less"
                );
                diagnostics.error(&argument.value, message);
            }
            // A short ttl alone shortens the default lease with it.
            (None, None) if ttl < DEFAULT_LEASE_MILLIS => self.lease_millis = Some(ttl),
            _ => {}
        }
        if let Some(both) = self.keep_headers.iter().find(|name| self.drop_headers.contains(name))
            && let Some(argument) = arguments.get("drop_headers")
        {
            diagnostics.error(
                &argument.value,
                format!("`{both}` is both in `keep_headers` and in `drop_headers`; remove one of them"),
            );
        }
        self
    }
}
