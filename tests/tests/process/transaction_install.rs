//! A handler with a `Tx` that its store does not support is rejected at start-up.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use idempotent_runtime::store::{MemoryStore, PostgresStore, SqliteStore};
use idempotent_runtime::{InstallError, Registry, idempotent, install, policies};
use idempotent_tests::Logs;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Database, Postgres, Sqlite};

#[idempotent(scope = "charges", store = "embedded")]
async fn create_charge(tx: idempotent_runtime::Tx<Sqlite>) {
    drop(tx);
}

#[idempotent(scope = "pooled", store = "pooled")]
async fn from_a_pool(tx: idempotent_runtime::Tx<Postgres>) {
    drop(tx);
}

mod others {
    pub(super) struct Tx<T>(pub(super) std::marker::PhantomData<fn() -> T>);
}

impl<S: Sync, T> FromRequestParts<S> for others::Tx<T> {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(std::marker::PhantomData))
    }
}

/// An extractor of another crate with the same name.
#[idempotent(scope = "others")]
async fn with_the_tx_of_another_crate(_tx: others::Tx<Sqlite>) {}

/// Its database is known only when it is used.
#[idempotent(scope = "generic")]
async fn generic<DB: Database>(tx: idempotent_runtime::Tx<DB>) {
    drop(tx);
}

struct Repository<DB>(std::marker::PhantomData<DB>);

impl<DB: Database> Repository<DB> {
    /// The same, but the attribute cannot see that its database is generic.
    #[idempotent(scope = "method")]
    async fn method(tx: idempotent_runtime::Tx<DB>) {
        drop(tx);
    }
}

type Tx = idempotent_runtime::Tx<Sqlite>;

#[idempotent(scope = "alias", store = "embedded")]
async fn by_an_alias(tx: Tx) {
    drop(tx);
}

macro_rules! with_a_fragment {
    ($argument:ty) => {
        #[idempotent(scope = "fragment", store = "embedded")]
        async fn in_a_fragment(tx: $argument) {
            drop(tx);
        }
    };
}

with_a_fragment!(idempotent_runtime::Tx<Sqlite>);

#[tokio::test]
async fn install_names_the_handler_and_both_databases() {
    let database = |function: &str| {
        let policy = policies().find(|policy| policy.handler().ends_with(function)).expect("it is registered");
        policy.database()
    };
    assert_eq!(database("::create_charge"), Some("SQLite"));
    assert_eq!(database("::with_the_tx_of_another_crate"), None);
    assert_eq!(database("::generic"), None);
    assert_eq!(database("::method"), None);
    assert_eq!(database("::by_an_alias"), Some("SQLite"));
    assert_eq!(database("::in_a_fragment"), Some("SQLite"));
    let _ = (create_charge, from_a_pool, with_the_tx_of_another_crate, generic::<Sqlite>, in_a_fragment);
    let _ = (Repository::<Sqlite>::method, by_an_alias);

    let folder = tempfile::tempdir().expect("a temporary folder");
    let embedded = SqliteStore::open(folder.path().join("idempotency.db")).await.expect("the store opens");
    let pool = |connections| {
        let pool = PgPoolOptions::new().max_connections(connections);
        PostgresStore::new(pool.connect_lazy("postgres://localhost/app").expect("a URL"))
    };
    let builder = Registry::builder(embedded.clone()).store("embedded", MemoryStore::new());
    let wrong = builder.store("pooled", pool(4)).build().install();
    let error = wrong.expect_err("the store has no transactions");
    assert!(matches!(error, InstallError::NoTransactions { .. }), "{error}");
    let message = error.to_string();
    // The error names any of the handlers whose store has no transactions.
    assert!(["create_charge", "by_an_alias", "in_a_fragment"].iter().any(|name| message.contains(name)), "{message}");
    for part in ["transaction_install.rs:", "SQLite", "has none", "store = "] {
        assert!(message.contains(part), "{part} in {message}");
    }
    let missing = install(MemoryStore::new());
    assert!(
        matches!(&missing, Err(InstallError::UnknownStore { name, .. }) if name == "embedded" || name == "pooled"),
        "{missing:?}"
    );
    // An `Arc` of a store passes its transactions on.
    let right = Registry::builder(MemoryStore::new()).store("embedded", std::sync::Arc::new(embedded));
    let logs = Logs::collect();
    right.store("pooled", pool(4)).build().install().expect("the stores have transactions");
    // Four concurrent requests whose handlers take a second connection exhaust this pool.
    let warnings = logs.of_level("WARN").into_iter().filter(|line| line.contains("small pool")).collect::<Vec<_>>();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for part in ["store=\"pooled\"", "connections=4", "from_a_pool"] {
        assert!(warnings[0].contains(part), "{part} in {}", warnings[0]);
    }
}
