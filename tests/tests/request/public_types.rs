//! What every public type guarantees: it can be sent to another thread, and an error converts to
//! `Box<dyn Error + Send + Sync>`.

use std::error::Error;

use idempotent_runtime::inspector::{Inspector, Operator};
use idempotent_runtime::operate::{EntryReport, EntryView, Scan, UnknownState};
use idempotent_runtime::store::{
    Claim, ClaimRequest, Cursor, DamagedEntry, Entry, MemoryStore, Page, PostgresMigrateError, PostgresStore,
    PostgresStoreBuilder, RedisOpenError, RedisStore, RedisStoreBuilder, Renewal, SqliteOpenError, SqliteStore,
    SqliteStoreBuilder, StoreError, Token, Transactions,
};
use idempotent_runtime::testing::{FaultyStore, SeededClaim, TestRegistry};
use idempotent_runtime::{
    Completion, Fingerprint, Guarded, Idempotency, IdempotencyKey, IdempotencyLayer, IdempotencyService, InstallError,
    InvalidKey, InvalidPolicy, MalformedFingerprint, MalformedRecordKey, MalformedSealingKey, Policy, PolicyBuilder,
    Record, RecordKey, Registry, RegistryBuilder, Rejection, SealingKeys, StepError, Tx, TxConnection, policies,
};
use sqlx::{PgPool, Postgres, Sqlite};

/// Calls the function for each type.
macro_rules! each {
    ($check:ident: $($type:ty),+ $(,)?) => { $($check::<$type>();)+ };
}

#[test]
fn public_types_are_send_and_sync() {
    fn check<T: Send + Sync + 'static>() {}
    each!(check: Registry, RegistryBuilder, TestRegistry, IdempotencyLayer, IdempotencyService<()>, Policy, PolicyBuilder);
    each!(check: Idempotency, IdempotencyKey, RecordKey, Fingerprint, Record, Rejection, SealingKeys, Guarded<String>);
    each!(check: MemoryStore, SqliteStore, PostgresStore, RedisStore, FaultyStore, SeededClaim<MemoryStore>, Transactions);
    each!(check: SqliteStoreBuilder, PostgresStoreBuilder, RedisStoreBuilder);
    each!(check: Claim, ClaimRequest, Renewal, Token, Entry, DamagedEntry, Cursor, Page);
    each!(check: Inspector, Operator, EntryView, EntryReport, Scan);
    each!(check: Tx<Sqlite>, Tx<Postgres>, TxConnection<Sqlite>, TxConnection<Postgres>);
}

#[test]
fn futures_of_handlers_are_send() {
    fn check<T: Send + 'static>() {}
    each!(check: Completion);
}

#[test]
fn public_errors_are_errors_of_every_thread() {
    fn check<T: Error + Send + Sync + 'static>() {}
    each!(check: InstallError, InvalidKey, InvalidPolicy, MalformedFingerprint, MalformedRecordKey, MalformedSealingKey);
    each!(check: StepError, StoreError, SqliteOpenError, PostgresMigrateError, RedisOpenError, UnknownState);
}

#[tokio::test]
async fn debug_text_of_builders_hides_credentials() {
    let pool = PgPool::connect_lazy("postgres://shop:hunter2@localhost/app").expect("a URL");
    let text = format!("{:?}", PostgresStore::builder(pool).schema("payments"));
    assert!(text.contains("payments") && !text.contains("hunter2"), "{text}");
    let redis = RedisStore::builder("redis://shop:hunter2@localhost/").prefix("payments:");
    let text = format!("{redis:?}");
    assert!(text.contains("payments:") && !text.contains("hunter2"), "{text}");
}

/// The names in logs.
#[test]
fn policies_are_shown_by_function_or_layer_and_their_line() {
    let layered = Policy::builder("public-types-layer").build().expect("a valid policy").to_string();
    assert!(layered.starts_with("a layer at ") && layered.contains("public_types.rs:"), "{layered}");
    let handlers = policies().map(ToString::to_string);
    let annotated: Vec<_> = handlers.filter(|handler| handler.contains("policy_overrides.rs:")).collect();
    assert!(annotated.iter().any(|handler| handler.contains("policy_overrides::times at ")), "{annotated:?}");
}
