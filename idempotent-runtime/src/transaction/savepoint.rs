//! A savepoint in a handler's transaction.

use std::fmt;
use std::ops::{Deref, DerefMut};

use sqlx::Database;

use crate::transaction::connection::TxConnection;
use crate::transaction::levels::{End, Level};

/// A savepoint in the transaction of a [`Tx`](crate::Tx), made by [`TxConnection::begin`].
///
/// Its [`commit`](Self::commit) and [`rollback`](Self::rollback) end the savepoint, and never the transaction. Dropping
/// a savepoint rolls it back. A savepoint dereferences to the [`TxConnection`]: run statements on `&mut *savepoint`,
/// and begin a savepoint inside it with `savepoint.begin()`.
///
/// # Examples
///
/// ```standalone_crate
/// use axum::http::StatusCode;
/// use idempotent_runtime::{Tx, idempotent};
/// use sqlx::Sqlite;
///
/// /// Records the 409 if the name is taken. Only the savepoint is undone.
/// #[idempotent(scope = "accounts", cache = [201, 409])]
/// async fn create_account(mut tx: Tx<Sqlite>, name: String) -> Result<StatusCode, StatusCode> {
///     let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
///     let mut savepoint = tx.begin().await.map_err(failed)?;
///     let insert = sqlx::query("INSERT INTO accounts (name) VALUES (?)").bind(name).execute(&mut *savepoint);
///     match insert.await {
///         Ok(_) => savepoint.commit().await.map(|()| StatusCode::CREATED).map_err(failed),
///         Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
///             savepoint.rollback().await.map(|()| StatusCode::CONFLICT).map_err(failed)
///         }
///         Err(error) => Err(failed(error)),
///     }
/// }
/// ```
#[must_use = "a savepoint that is dropped is rolled back"]
pub struct Savepoint<'tx, DB: Database> {
    connection: &'tx mut TxConnection<DB>,
    /// `None` after the savepoint has ended.
    level: Option<Level>,
}

impl<DB: Database> TxConnection<DB> {
    /// Begins a savepoint.
    ///
    /// # Errors
    ///
    /// Returns the error of the database. After this error the transaction has ended, as if the future had been
    /// dropped.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, the transaction has ended: every later statement fails, and nothing
    /// is kept.
    pub async fn begin(&mut self) -> Result<Savepoint<'_, DB>, sqlx::Error> {
        let level = self.0.begin_level().await?;
        Ok(Savepoint { connection: self, level: Some(level) })
    }
}

impl<DB: Database> Savepoint<'_, DB> {
    /// Keeps the writes since the savepoint, if the transaction commits.
    ///
    /// # Errors
    ///
    /// Returns the error of the database; the savepoint is then rolled back. If the transaction has ended, returns
    /// [`sqlx::Error::InvalidArgument`], whose message says so, and sends nothing.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, the transaction has ended: nothing is kept.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.end(End::Commit).await
    }

    /// Undoes the writes since the savepoint. The transaction continues.
    ///
    /// # Errors
    ///
    /// The same as those of [`commit`](Self::commit).
    ///
    /// # Cancel safety
    ///
    /// The same as that of [`commit`](Self::commit).
    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.end(End::RollBack).await
    }

    async fn end(mut self, end: End) -> Result<(), sqlx::Error> {
        if let Some(level) = &self.level {
            self.connection.0.end_level(level, end).await?;
        }
        self.level = None;
        Ok(())
    }
}

impl<DB: Database> Drop for Savepoint<'_, DB> {
    fn drop(&mut self) {
        if let Some(level) = self.level.take() {
            self.connection.0.drop_level(&level);
        }
    }
}

impl<DB: Database> Deref for Savepoint<'_, DB> {
    type Target = TxConnection<DB>;

    fn deref(&self) -> &TxConnection<DB> {
        self.connection
    }
}

impl<DB: Database> DerefMut for Savepoint<'_, DB> {
    fn deref_mut(&mut self) -> &mut TxConnection<DB> {
        self.connection
    }
}

impl<DB: Database> fmt::Debug for Savepoint<'_, DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Savepoint").field("database", &DB::NAME).finish_non_exhaustive()
    }
}
