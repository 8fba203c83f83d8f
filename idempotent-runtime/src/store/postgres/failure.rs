//! What PostgreSQL's errors mean to a caller.

use crate::store::error::StoreError;
use crate::store::given_back::given_back;
use crate::transaction::error::{Aborted, Conflict, ReadOnly, Violated};

/// Whether the statement took no effect and is likely to succeed at once: a conflict of the application's own isolation
/// level, or a deadlock that PostgreSQL has solved.
pub(super) fn is_transient(error: &sqlx::Error) -> bool {
    matches!(code(error).as_deref(), Some("40001" | "40P01"))
}

/// Whether a statement before this one has failed in its transaction.
pub(super) fn is_aborted(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("25P02")
}

/// Whether the statement would have written in a transaction that is read-only.
fn is_read_only(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("25006")
}

/// Whether what the handler deferred to the end of its transaction has failed: a constraint, or what a deferred trigger does.
fn is_violation(error: &sqlx::Error) -> bool {
    matches!(code(error).as_deref().and_then(|code| code.get(..2)), Some("22" | "23" | "27" | "44" | "P0"))
}

/// What an error of a statement in a handler's transaction means for the transaction.
pub(super) fn in_transaction(error: sqlx::Error) -> StoreError {
    if is_aborted(&error) {
        StoreError::unavailable(Aborted)
    } else if is_transient(&error) {
        StoreError::unavailable(Conflict(Box::new(error)))
    } else if is_read_only(&error) {
        StoreError::unavailable(ReadOnly(Box::new(error)))
    } else {
        store_error(error)
    }
}

/// What an error means where all that was deferred is checked.
pub(super) fn at_the_end(error: sqlx::Error) -> StoreError {
    if is_violation(&error) { StoreError::unavailable(Violated(Box::new(error))) } else { in_transaction(error) }
}

pub(super) fn store_error(error: sqlx::Error) -> StoreError {
    match code(&error).as_deref() {
        Some("42P01" | "3F000") => StoreError::unavailable(NotMigrated(error)),
        // data_corrupted, index_corrupted: what cannot be read may be a record.
        Some("XX001" | "XX002") => StoreError::damaged(error),
        _ => StoreError::unavailable(error),
    }
}

/// For a claim, which is rejected where there is no room for its row, or where its token was given back before.
pub(super) fn claim_error(error: sqlx::Error) -> StoreError {
    match code(&error).as_deref() {
        Some("53100") => StoreError::Full,
        Some("23505") => given_back(),
        _ => store_error(error),
    }
}

fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

#[derive(Debug, thiserror::Error)]
#[error("the tables of the store are not there: call `PostgresStore::migrate` at start-up, or run its SQL")]
struct NotMigrated(#[source] sqlx::Error);
