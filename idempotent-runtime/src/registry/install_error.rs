//! The reasons why a registry was not installed.

use std::fmt;

use crate::error_text::with_causes;

/// The reason why a registry was not installed.
///
/// A handler is shown by its path and its place in the source, such as `shop::create_charge at src/charges.rs:12`.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// A registry is already installed.
    #[error(
        "a registry is already installed; install once at start-up, and use `router.layer(registry.layer())` for others"
    )]
    AlreadyInstalled,
    /// A handler names a store that the registry does not have.
    #[error(
        "the handler {handler} names the store {name:?}, but the registry has {}; \
         add it with `Registry::builder(default_store).store({name:?}, store)`",
        named(known)
    )]
    #[non_exhaustive]
    UnknownStore {
        /// The name in the attribute.
        name: String,
        /// The handler.
        handler: String,
        /// The names that the registry has.
        known: Vec<String>,
    },
    /// A handler takes a `Tx` of another database than that of its store.
    #[error(
        "the handler {handler} takes a transaction of {wanted}, but its store has {}; \
         give it a store on that database, with `store = \"…\"` if it is not the default one",
        found.as_ref().map_or_else(|| "none".to_owned(), |found| format!("those of {found}"))
    )]
    #[non_exhaustive]
    NoTransactions {
        /// The handler.
        handler: String,
        /// The database of its `Tx`.
        wanted: String,
        /// The database of its store, if that has transactions.
        found: Option<String>,
    },
    /// Two handlers have the same default scope, so that one could replay the other's responses.
    #[error(
        "the handlers {first} and {second} have the same default scope {scope:?}; give each its own with `scope = \"…\"`"
    )]
    #[non_exhaustive]
    SharedDefaultScope {
        /// Their scope.
        scope: String,
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// Two handlers have the same scope, so that one could replay the other's responses, and not both say
    /// `shared_scope`.
    ///
    /// This applies to handlers on different stores too: two names can be one store, and operators, metrics and limits
    /// identify a handler by its scope.
    #[error(
        "the handlers {first} and {second} have the same scope {scope:?}, so that one could replay the other's responses; \
         give each its own with `scope = \"…\"`, or write `scope = {scope:?}, shared_scope` on both \
         if both handlers are to share their keys"
    )]
    #[non_exhaustive]
    SharedScope {
        /// Their scope.
        scope: String,
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
}

fn named(known: &[String]) -> String {
    if known.is_empty() {
        return "no named stores".to_owned();
    }
    let quoted: Vec<String> = known.iter().map(|name| format!("{name:?}")).collect();
    format!("only {}", quoted.join(", "))
}

impl fmt::Debug for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_causes(self, f)
    }
}
