//! The attribute `#[idempotent]`; use it through the crate `idempotent-runtime`, which re-exports it.

mod args;
mod diagnostics;
mod document;
mod expand;
mod fallback;
mod handler;
mod model;
mod reader;
mod rewrite;
mod settings;
#[cfg(test)]
mod tests;
mod units;

/// The policy of a handler is in the arguments of its attribute.
///
/// # Arguments
///
/// Every one is optional.
///
/// | argument | default | meaning |
/// |---|---|---|
/// | `scope = "charges"` | module path and name of the function | namespace of the keys |
/// | `shared_scope` | off | other handlers have this `scope` too, and say so: a key that one has seen is used up for all of them |
/// | `ttl = "24h"` | `"24h"` | how long a record is kept, at least 1s and at most 100 years; `"90s"`, `"15m"`, `"24h"`, `"7d"`, sums such as `"1h30m"` |
/// | `cache = [201, 409]` | `[200..=299, 303]` | statuses that are recorded: numbers, ranges `200..=299` and `400..500`, classes `"2xx"`; `all` |
/// | `cache_if = path` | none | `fn(&http::response::Parts) -> bool`, instead of `cache` |
/// | `header = "x-request-id"` | `"idempotency-key"` | where the key is |
/// | `key = expr` | the header | key from the arguments instead (`&str`, `String`, `Option` of either) |
/// | `required` | off | a request without a key gets 400; otherwise it passes through unguarded |
/// | `invalid_key = "ignore"` | `"reject"` | a malformed key: 400, or it counts as none |
/// | `methods = [POST, PATCH]` | `[POST, PUT, PATCH, DELETE]` | others pass through; `any` for all |
/// | `caller = expr` | the registry's | partitions keys by principal (`Display`); without it, a retry with other credentials is rejected |
/// | `fingerprint = expr` | method, authority, path, query, media type, content coding, body | what a reused key must repeat in place of query and body: any `serde::Serialize` expression over the arguments; `only(expr)` in place of all of them; `json`: the body in its canonical form; `none` |
/// | `in_flight = wait("5s")` | `reject` | a duplicate of a running request: 409 at once, or wait for its response and replay it; a waiter never executes |
/// | `lease = "30s"` | `"30s"`, or `ttl` if that is shorter | how long a dead process holds a key, at least 100ms; renewed while the handler runs |
/// | `after_crash = "reject"` | `"rerun"` | the handler may have run: run it again (at least once), or never (at most once) |
/// | `isolation = "serializable"` | the database's | isolation of the handler's `Tx`: `"serializable"` or `"repeatable_read"`; SQLite's transactions are serializable always |
/// | `max_body = "4MiB"` | `"4MiB"` | largest recorded body |
/// | `oversize = "rerun"` | `"reject"` | after a larger or endless response a retry gets 409 with the original status, or runs again |
/// | `keep_headers = ["set-cookie"]` | none | headers that are recorded although the default leaves them out |
/// | `drop_headers = ["x-trace"]` | none | headers that are not recorded |
/// | `store = "payments"` | the default store | a named store of the registry |
/// | `on_store_error = "run"` | `"reject"` | the store cannot be asked: 503, or run unguarded |
///
/// `key`, `caller` and `fingerprint` are evaluated after the extractors and before the body, in this order; they see the
/// handler's own variables and borrow them, may `.await`, and may end the handler by `?` with an error of its own type, which is
/// answered before anything is claimed. The words `reject`, `all`, `any` and those in quotes may be written bare or
/// quoted.
///
/// The default scope is the same for every instance of a generic handler. Two functions whose path is the same, as those of
/// one name in `impl` blocks of one module are, need a `scope` each: `install` says so, and under a registry's layer
/// their keyed requests get 503. `install` rejects two handlers of one `scope` as well, unless both say `shared_scope`; a
/// registry's layer logs them.
///
/// # What becomes of the function
///
/// Name, visibility, generics, documentation and attributes stay. Its last argument is wrapped in `Guarded`, and it returns a
/// `Completion`, a future of its response; a handler without arguments gets one. A unit test calls it with `.into()` on the
/// last argument, and awaits it. Other attributes, above or below, see the function as it was written.
///
/// axum's `debug_handler` calls the function for a check of its own. On a handler without arguments write it below
/// `#[idempotent]`, or give the handler the argument `_: ()`. In an `impl` block leave `debug_handler` out: its checks call
/// functions without their `Self::`, so that alone it compiles on no handler with arguments there.
///
/// # Errors
///
/// Whatever is wrong in the arguments or the signature is a compile error at the tokens that are wrong, all at once.
#[proc_macro_attribute]
pub fn idempotent(arguments: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    rewrite::rewrite(&arguments.into(), &item.into()).into()
}
