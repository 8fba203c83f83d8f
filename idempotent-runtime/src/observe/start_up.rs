//! The events of a registry when a program starts: what is likely to be wrong with its handlers.

use crate::policy::Policy;

/// Logs that `install` was called with a registry that names no caller, for handlers that name no caller either.
pub(crate) fn without_caller(policies: impl Iterator<Item = &'static Policy>) {
    let handlers: Vec<String> = policies.filter(|policy| !policy.has_caller()).map(Policy::handler).collect();
    if !handlers.is_empty() {
        tracing::warn!(
            handlers = handlers.join(", "),
            "some handlers name no caller: a retry with renewed credentials is rejected; write `caller = …`, or \
             `Registry::builder(…).caller(…)` for all of them"
        );
    }
}

/// Logs that handlers take their transactions from a pool with few connections.
pub(crate) fn small_pool(store: &str, connections: u32, handlers: &[String]) {
    tracing::warn!(
        store,
        connections,
        handlers = handlers.join(", "),
        "some handlers take a `Tx` from a small pool: if they also take a second connection from it, they can block each other; \
         write through the `Tx` alone, or take the second connection from another pool"
    );
}

/// Logs that handlers that must not run again have their claims in a store that forgets them.
pub(crate) fn forgotten_claims(store: &str, handlers: &[String]) {
    tracing::warn!(
        store,
        handlers = handlers.join(", "),
        "some handlers have `after_crash = \"reject\"` and a store in memory: the store forgets their claims with its process, and \
         a retry after a restart runs the handler again; use another store"
    );
}

/// Logs that two handlers share a scope, so their keys could collide, under a registry that was not installed.
pub(crate) fn shared_scope(first: &Policy, second: &Policy) {
    tracing::error!(
        scope = first.scope(),
        %first,
        %second,
        "two handlers have one scope: one may replay the other's responses; \
         give each its own with `scope = \"…\"`, or write `shared_scope` on both"
    );
}
