//! The work of the writer between batches: it deletes expired rows, and repairs the file of leases.

use std::error::Error;

use sqlx::sqlite::SqliteConnection;

use crate::store::error::StoreError;
use crate::store::sqlite::failure::{Failure, store_error};
use crate::store::sqlite::handler_transactions::Turn;
use crate::store::sqlite::locked::{Context, delete_expired};
use crate::store::sqlite::schema;
use crate::store::sqlite::write_transaction::{begin, commit, rollback};

/// Records the renewals of processes with another clock.
pub(super) async fn watch(context: Context<'_>) {
    if let Err(error) = context.leases.watch().await {
        tracing::debug!(error = &error as &dyn Error, "the leases of processes with another clock could not be read");
    }
}

/// Creates a new file of leases if the old one is lost.
pub(super) async fn repair_leases(connection: &mut SqliteConnection, context: Context<'_>) {
    if !context.leases.is_lost() {
        return;
    }
    let repaired = async {
        begin(&mut *connection).await?;
        context.leases.repair(&mut *connection).await?;
        commit(&mut *connection).await
    };
    let repaired = match repaired.await {
        Ok(()) => context.leases.connect().await,
        Err(error) => {
            rollback(connection).await;
            Err(store_error(error))
        }
    };
    match repaired {
        Ok(()) => tracing::warn!(
            "the file of leases beside the database was deleted or replaced: a new one was made, and each claim is held for one \
             more lease"
        ),
        Err(error) => tracing::error!(
            error = &error as &dyn Error,
            "the file of leases beside the database was deleted or replaced, and no new one can be made: this is tried again"
        ),
    }
}

/// Deletes one batch of expired rows. Returns whether there may be more.
pub(super) async fn delete_expired_batch(
    connection: &mut SqliteConnection,
    context: Context<'_>,
    turn: &Turn,
) -> Result<bool, StoreError> {
    let _turn = turn.lock().await;
    context.file.check()?;
    repair_leases(connection, context).await;
    context.leases.delete_expired().await?;
    delete_expired_rows(connection, context).await.map_err(Failure::into_error)
}

/// Takes the write lock only if there is an expired row, so that an idle store writes nothing.
async fn delete_expired_rows(connection: &mut SqliteConnection, context: Context<'_>) -> Result<bool, Failure> {
    if schema::at(context.now(), schema::ANY_EXPIRED).fetch_optional(&mut *connection).await?.is_none() {
        return Ok(false);
    }
    begin(connection).await?;
    let mut deleted = delete_expired(connection, context).await;
    if deleted.is_ok() {
        deleted = commit(connection).await.map_err(Failure::from).and(deleted);
    }
    if deleted.is_err() {
        rollback(connection).await;
    }
    Ok(deleted? > 0)
}
