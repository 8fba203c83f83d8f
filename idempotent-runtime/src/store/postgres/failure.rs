//! What PostgreSQL's errors mean for a caller.

use std::sync::Arc;

use crate::store::error::{StoreError, Waited};
use crate::store::given_back::given_back;
use crate::transaction::error::{Aborted, Conflict, ReadOnly, Violated};

/// Returns whether the statement took no effect and is likely to succeed if it is sent again: a conflict of the application's own
/// isolation level, or a deadlock that PostgreSQL has resolved.
pub(super) fn is_transient(error: &sqlx::Error) -> bool {
    matches!(code(error).as_deref(), Some("40001" | "40P01"))
}

/// Returns whether an earlier statement of the transaction has failed.
pub(super) fn is_aborted(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("25P02")
}

/// Returns whether the statement would have written in a read-only transaction. The statement was not run. The store's own statements
/// get this error from a server that was demoted: a former primary that now follows another one.
pub(super) fn is_read_only(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("25006")
}

/// Returns whether a transaction that writes was begun on a server that follows another one.
pub(super) fn is_demoted(error: &sqlx::Error) -> bool {
    // feature_not_supported
    is_read_only(error) || code(error).as_deref() == Some("0A000")
}

/// Returns whether a transaction could not begin because of [`is_demoted`].
pub(super) fn is_from_demoted(error: &StoreError) -> bool {
    let StoreError::Unavailable(source) = error else { return false };
    source.downcast_ref::<sqlx::Error>().is_some_and(is_demoted)
}

/// Returns whether something that the handler deferred to the end of its transaction has failed: a constraint or a deferred trigger.
fn is_violation(error: &sqlx::Error) -> bool {
    matches!(code(error).as_deref().and_then(|code| code.get(..2)), Some("22" | "23" | "27" | "44" | "P0"))
}

/// Converts an error of a statement in a handler's transaction.
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

/// Converts an error of the statement that checks everything that was deferred.
pub(super) fn at_the_end(error: sqlx::Error) -> StoreError {
    if is_violation(&error) { StoreError::unavailable(Violated(Box::new(error))) } else { in_transaction(error) }
}

/// Returns whether the name of the prepared statement belongs to another client, as happens behind a pooler. The statement was not
/// run.
pub(super) fn is_of_another_statement(error: &sqlx::Error) -> bool {
    // duplicate_prepared_statement, invalid_sql_statement_name, and the wrong number of parameters for the other statement.
    matches!(code(error).as_deref(), Some("42P05" | "26000" | "08P01"))
}

/// Returns whether the server had ended the connection before the statement arrived, so that the statement was not run.
pub(super) fn is_ended_before(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::BrokenPipe,
        // admin_shutdown, crash_shutdown, idle_session_timeout, idle_in_transaction_session_timeout
        _ => matches!(code(error).as_deref(), Some("57P01" | "57P02" | "57P05" | "25P03")),
    }
}

/// Returns whether the connection is lost. The statement may have been run.
pub(super) fn is_lost(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(_)) || is_ended_before(error)
}

/// Returns whether the server has rejected the statement, which then had no effect. An error of class 08 (connection exception) does
/// not come from the server: a pooler has lost its connection to the server, and the statement may have been run.
pub(super) fn is_rejected(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| !code.starts_with("08"))
}

/// Converts the error of a lost batch for one of its callers. The caller's operation may have taken effect.
pub(super) fn lost_error(error: Arc<sqlx::Error>) -> StoreError {
    if is_short_of_something(&error) { StoreError::busy(error) } else { StoreError::unavailable(error) }
}

pub(super) fn store_error(error: sqlx::Error) -> StoreError {
    match code(&error).as_deref() {
        // undefined_table, invalid_schema_name, undefined_column
        Some("42P01" | "3F000" | "42703") => StoreError::unavailable(NotMigrated(error)),
        Some("42501") => StoreError::unavailable(NotGranted(error)),
        // data_corrupted, index_corrupted: the unreadable data may be a record.
        Some("XX001" | "XX002") => StoreError::damaged(error),
        // No connection was used.
        None if matches!(error, sqlx::Error::Configuration(_) | sqlx::Error::Tls(_)) => StoreError::not_sent(error),
        None if matches!(error, sqlx::Error::PoolTimedOut) => StoreError::unavailable(Waited(error.into())),
        Some(_) if is_short_of_something(&error) || is_transient(&error) => StoreError::busy(error),
        _ => StoreError::unavailable(error),
    }
}

/// Returns whether the server was reached, and lacks memory, connections or time for the call. A client can cause that.
pub(super) fn is_short_of_something(error: &sqlx::Error) -> bool {
    let Some(code) = code(error) else { return false };
    // insufficient_resources; query_canceled, as by `statement_timeout`; lock_not_available
    code.starts_with("53") || matches!(&*code, "57014" | "55P03") || (code == "08P01" && is_pooler_short(error))
}

/// Returns whether a pooler says that it has no place for a client, or had no connection in time.
fn is_pooler_short(error: &sqlx::Error) -> bool {
    // PgBouncer's messages about `max_client_conn` and other limits, and about `query_wait_timeout`.
    const MESSAGES: [&str; 4] =
        ["no more connections allowed", "connections exceeded", "query_wait_timeout", "query_timeout"];
    let message = error.as_database_error().map_or("", |error| error.message());
    MESSAGES.iter().any(|part| message.contains(part))
}

/// Converts the error of a call that writes a record. The server rejects some records at every attempt.
pub(super) fn record_error(error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable(source) if source.downcast_ref::<sqlx::Error>().is_some_and(is_rejected_for_good) => {
            StoreError::RecordRejected(source)
        }
        error => error,
    }
}

/// Returns whether a value does not fit its column, a constraint or a trigger rejects the row, or the row exceeds a limit of
/// PostgreSQL.
fn is_rejected_for_good(error: &sqlx::Error) -> bool {
    let is_over_a_limit = || code(error).is_some_and(|code| code.starts_with("54"));
    matches!(error, sqlx::Error::Encode(_)) || is_violation(error) || is_over_a_limit()
}

/// Converts the error of a claim. A claim is rejected if there is no room for its row, or if its token was given back before.
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
