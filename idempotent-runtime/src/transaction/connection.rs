//! The connection that a handler uses.

use std::fmt;
use std::future::ready;
use std::ops::{Deref, DerefMut};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use sqlx::{Acquire, Database, Either, Execute, Executor, SqlStr, Transaction};
use sqlx_core::describe::Describe;

use crate::transaction::open::{Open, WatchedConnection};

/// The connection of a [`Tx`](crate::Tx). It remembers the error that aborted its transaction.
///
/// `&mut *tx` is a `TxConnection`, and so is `&mut *savepoint`. A `TxConnection` is an [`Executor`] and an [`Acquire`]
/// like the connection itself, and dereferences to the connection for functions that take a connection. The method
/// [`begin`](Self::begin) takes precedence over `Acquire::begin`, which returns a [`Transaction`] of sqlx, whose errors
/// the engine does not see. The engine sees the error of a statement that runs through the `TxConnection`, so a
/// serialization failure or a deadlock becomes 503 `transaction_conflict`. The engine does not see errors of statements
/// on the connection itself. If these errors matter, let a function take an `impl Executor<'_, Database = Postgres>`
/// instead of a `&mut PgConnection`.
///
/// # Errors
///
/// If the transaction ended while the handler ran, each statement fails with [`sqlx::Error::InvalidArgument`], whose
/// message says so. The statement is not sent.
///
/// On PostgreSQL, a lost statement fails with [`sqlx::Error::Io`] within five seconds, and so does every later one. A
/// statement counts as lost if PostgreSQL is waiting for a statement at the same time: then the network between the
/// program and PostgreSQL drops all packets. A slow statement has no limit. See the guide's page
/// [`transactions`](crate::guide::transactions).
///
/// # Examples
///
/// ```standalone_crate
/// use axum::http::StatusCode;
/// use idempotent_runtime::{Tx, idempotent};
/// use sqlx::{Executor, Sqlite};
///
/// async fn insert<'c>(charges: impl Executor<'c, Database = Sqlite>, amount: &str) -> Result<(), sqlx::Error> {
///     sqlx::query("INSERT INTO charges (amount) VALUES (?)").bind(amount.to_owned()).execute(charges).await.map(drop)
/// }
///
/// #[idempotent(scope = "charges", cache = [201])]
/// async fn create_charge(mut tx: Tx<Sqlite>, amount: String) -> Result<StatusCode, StatusCode> {
///     insert(&mut *tx, &amount).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
///     Ok(StatusCode::CREATED)
/// }
/// ```
pub struct TxConnection<DB: Database>(pub(super) Open<DB>);

impl<DB: Database> TxConnection<DB> {
    /// Returns the same connection, for a function that takes an executor or a connection.
    #[expect(clippy::should_implement_trait, reason = "the trait's method gives the connection beneath it")]
    pub fn as_mut(&mut self) -> &mut Self {
        self
    }
}

impl<DB: Database> AsMut<DB::Connection> for TxConnection<DB> {
    fn as_mut(&mut self) -> &mut DB::Connection {
        self
    }
}

impl<DB: Database> Deref for TxConnection<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        &self.0
    }
}

impl<DB: Database> DerefMut for TxConnection<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        self.0.connection_mut()
    }
}

impl<DB: Database> fmt::Debug for TxConnection<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TxConnection").field("database", &DB::NAME).finish_non_exhaustive()
    }
}

/// A macro instead of a generic implementation: for a generic database, the compiler cannot infer the connection's
/// type.
macro_rules! executor {
    ($database:ty) => {
        impl<'c> Executor<'c> for &'c mut TxConnection<$database> {
            type Database = $database;

            fn fetch_many<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxStream<
                'e,
                Result<Either<<$database as Database>::QueryResult, <$database as Database>::Row>, sqlx::Error>,
            >
            where
                'c: 'e,
                E: 'q + Execute<'q, $database>,
            {
                match self.0.watched() {
                    Ok(WatchedConnection { connection, watch, .. }) => {
                        let query = watch.noted(query);
                        watch.rows(connection.fetch_many(query)).boxed()
                    }
                    Err(error) => stream::once(ready(Err(error))).boxed(),
                }
            }

            fn fetch_optional<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, Result<Option<<$database as Database>::Row>, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, $database>,
            {
                match self.0.watched() {
                    Ok(WatchedConnection { connection, mut watch, .. }) => {
                        let query = watch.noted(query);
                        async move { watch.answer(connection.fetch_optional(query)).await }.boxed()
                    }
                    Err(error) => ready(Err(error)).boxed(),
                }
            }

            fn prepare_with<'e>(
                self,
                sql: SqlStr,
                parameters: &'e [<$database as Database>::TypeInfo],
            ) -> BoxFuture<'e, Result<<$database as Database>::Statement, sqlx::Error>>
            where
                'c: 'e,
            {
                match self.0.watched() {
                    Ok(WatchedConnection { connection, mut watch, .. }) => {
                        watch.note_statement(sql.as_str());
                        async move { watch.answer(connection.prepare_with(sql, parameters)).await }.boxed()
                    }
                    Err(error) => ready(Err(error)).boxed(),
                }
            }

            #[doc(hidden)]
            fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<$database>, sqlx::Error>>
            where
                'c: 'e,
            {
                match self.0.watched() {
                    Ok(WatchedConnection { connection, mut watch, .. }) => {
                        watch.note_statement(sql.as_str());
                        async move { watch.answer(connection.describe(sql)).await }.boxed()
                    }
                    Err(error) => ready(Err(error)).boxed(),
                }
            }
        }

        impl<'c> Acquire<'c> for &'c mut TxConnection<$database> {
            type Database = $database;

            type Connection = &'c mut <$database as Database>::Connection;

            fn acquire(self) -> BoxFuture<'c, Result<Self::Connection, sqlx::Error>> {
                ready(self.0.watched().map(|WatchedConnection { connection, mut watch, .. }| {
                    watch.leave_to_the_handler();
                    connection
                }))
                .boxed()
            }

            fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, $database>, sqlx::Error>> {
                Box::pin(async move {
                    let WatchedConnection { connection, mut watch, levels } = self.0.watched()?;
                    watch.leave_to_the_handler();
                    // The transaction counts as ended until the nested transaction is known to have begun, as for a
                    // savepoint of the engine.
                    levels.are_lost = true;
                    let nested = watch.answer(Acquire::begin(connection)).await?;
                    levels.are_lost = false;
                    Ok(nested)
                })
            }
        }
    };
}

#[cfg(feature = "postgres")]
executor!(sqlx::Postgres);
#[cfg(feature = "sqlite")]
executor!(sqlx::Sqlite);
