//! What PostgreSQL's errors mean to a caller.

use std::sync::Arc;

use crate::store::error::{StoreError, Waited};
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

/// Whether the statement would have written in a transaction that is read-only. It was not run. A statement of the store's own is
/// told so by a server that was demoted: a former primary, which follows another one now.
pub(super) fn is_read_only(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("25006")
}

/// Whether a server that follows another one was asked to begin a transaction that writes.
pub(super) fn is_demoted(error: &sqlx::Error) -> bool {
    // feature_not_supported
    is_read_only(error) || code(error).as_deref() == Some("0A000")
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

/// Whether the name of a prepared statement is another client's, as behind a pooler: this one was not run.
pub(super) fn is_of_another_statement(error: &sqlx::Error) -> bool {
    // duplicate_prepared_statement, invalid_sql_statement_name, and too few or too many parameters for another one.
    matches!(code(error).as_deref(), Some("42P05" | "26000" | "08P01"))
}

/// Whether the server had ended the connection before the statement came, so that it was not run.
pub(super) fn is_ended_before(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::BrokenPipe,
        // admin_shutdown, crash_shutdown, idle_session_timeout, idle_in_transaction_session_timeout
        _ => matches!(code(error).as_deref(), Some("57P01" | "57P02" | "57P05" | "25P03")),
    }
}

/// Whether the connection is lost. The statement may have been run.
pub(super) fn is_lost(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(_)) || is_ended_before(error)
}

/// Whether the server has rejected the statement, which then had no effect. An error of class 08 (connection exception) is none of the
/// server's: a pooler has lost the server's connection, and the statement may have been run.
pub(super) fn is_rejected(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| !code.starts_with("08"))
}

/// For each caller whose operation was in one statement with others: the operation may have taken effect.
pub(super) fn lost_error(error: Arc<sqlx::Error>) -> StoreError {
    if is_short_of_something(&error) { StoreError::busy(error) } else { StoreError::unavailable(error) }
}

pub(super) fn store_error(error: sqlx::Error) -> StoreError {
    match code(&error).as_deref() {
        // undefined_table, invalid_schema_name, undefined_column
        Some("42P01" | "3F000" | "42703") => StoreError::unavailable(NotMigrated(error)),
        Some("42501") => StoreError::unavailable(NotGranted(error)),
        // data_corrupted, index_corrupted: what cannot be read may be a record.
        Some("XX001" | "XX002") => StoreError::damaged(error),
        // No connection was used.
        None if matches!(error, sqlx::Error::Configuration(_) | sqlx::Error::Tls(_)) => StoreError::not_sent(error),
        None if matches!(error, sqlx::Error::PoolTimedOut) => StoreError::unavailable(Waited(error.into())),
        Some(_) if is_short_of_something(&error) || is_transient(&error) => StoreError::busy(error),
        _ => StoreError::unavailable(error),
    }
}

/// Whether the server was asked, and lacks memory, connections or time for the call: a client could bring that about.
pub(super) fn is_short_of_something(error: &sqlx::Error) -> bool {
    let Some(code) = code(error) else { return false };
    // insufficient_resources; query_canceled, as by `statement_timeout`; lock_not_available
    code.starts_with("53") || matches!(&*code, "57014" | "55P03") || (code == "08P01" && is_pooler_short(error))
}

/// Whether a pooler says that it has no place for a client, or no connection in time.
fn is_pooler_short(error: &sqlx::Error) -> bool {
    // As PgBouncer says it, of `max_client_conn` and other limits, and of `query_wait_timeout`.
    const TOLD: [&str; 4] =
        ["no more connections allowed", "connections exceeded", "query_wait_timeout", "query_timeout"];
    let message = error.as_database_error().map_or("", |error| error.message());
    TOLD.iter().any(|told| message.contains(told))
}

/// The error of a call that writes a record. The server rejects some records at every try.
pub(super) fn record_error(error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable(source) if source.downcast_ref::<sqlx::Error>().is_some_and(is_rejected_for_good) => {
            StoreError::RecordRejected(source)
        }
        error => error,
    }
}

/// Whether a value does not fit its column, a constraint or a trigger rejects the row, or it is larger than PostgreSQL's own
/// limits.
fn is_rejected_for_good(error: &sqlx::Error) -> bool {
    let is_over_a_limit = || code(error).is_some_and(|code| code.starts_with("54"));
    matches!(error, sqlx::Error::Encode(_)) || is_violation(error) || is_over_a_limit()
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
#[error(
    "the tables of the store are not there, or are those of an older version: call `PostgresStore::migrate` at start-up, or run its SQL"
)]
struct NotMigrated(#[source] sqlx::Error);

#[derive(Debug, thiserror::Error)]
#[error(
    "the role lacks a right on the tables of the store: grant it USAGE on their schema, SELECT, INSERT, UPDATE and DELETE on \
     `records`, and SELECT on `schema_version`"
)]
struct NotGranted(#[source] sqlx::Error);
