//! The extractor of a handler's transaction.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};

use sqlx::{Database, Transaction};

use crate::transaction::connection::TxConnection;
use crate::transaction::open::Open;
use crate::transaction::slot::Slot;

/// The transaction in which an annotated handler runs: its writes and the record of its response commit together.
///
/// The engine begins the transaction with the claim. If the handler answers with a recorded status, the engine inserts
/// the record and commits everything before it sends the response. After any other status, a panic or a crash,
/// everything is rolled back. The next attempt then starts at once, because there is no lease to wait for. So the
/// effects that are rows of this database happen **exactly once**. Other effects, such as a call to another API, need
/// [`Idempotency::downstream_key`](crate::Idempotency::downstream_key).
///
/// A `Tx` dereferences to the [connection](TxConnection), like sqlx's own [`Transaction`]; `tx.begin()` is a
/// [`Savepoint`](crate::Savepoint). Run statements on `&mut *tx`. There is no `commit`, because the engine commits. The
/// handler's store must be in this database: [`install`](crate::install) rejects another store, and under a registry's
/// layer requests get 500. `install` knows the database if the argument's type is written as `Tx<Postgres>`,
/// `Tx<Sqlite>` or an alias named `Tx`. Requests of a handler with a generic `Tx<DB>` get 500 under a store in another
/// database. Without a key, the transaction commits on the same statuses, and nothing is recorded.
///
/// On PostgreSQL, the transaction uses a connection of the application's pool from the claim to the commit. If handlers
/// take a second connection from the same pool, and as many of them run as the pool has connections, they all wait for
/// each other. Use only the `Tx` for writes, or take the second connection from another pool.
/// [`install`](crate::install) warns of pools with fewer than ten connections.
///
/// The transaction must stay open: the handler must not send `COMMIT` or `ROLLBACK`, and must await a nested `begin` to
/// its end. The guide's page [`transactions`](crate::guide::transactions) lists everything else that can end the
/// transaction, and documents `isolation`. If a transaction of PostgreSQL is committed by anything but the engine, its
/// effects stay, and retries get 409 `response_not_recorded`.
///
/// A crash leaves nothing behind, not even the count of [`Idempotency::attempt`](crate::Idempotency::attempt).
/// `after_crash` matters only for claims that an earlier version of the handler, without a `Tx`, has made. There is no
/// lease: `lease` only limits how long the engine waits for the outcome of a `COMMIT` whose answer was lost, for
/// handlers that run under the same claim, and for the body of a response of unknown length. Three things do not
/// compile: `on_store_error = "run"`, two arguments `Tx`, and a `Tx` among the arguments after the claim, because the
/// transaction begins with the claim:
///
/// ```standalone_crate,compile_fail
/// use axum::http::StatusCode;
/// use idempotent_runtime::{Tx, idempotent};
/// use sqlx::Sqlite;
///
/// #[idempotent(scope = "charges")]
/// async fn create_charge(one: Tx<Sqlite>, another: Tx<Sqlite>) -> StatusCode {
///     StatusCode::CREATED
/// }
/// ```
///
/// ```standalone_crate,compile_fail
/// use axum::http::StatusCode;
/// use idempotent_runtime::{Tx, idempotent};
/// use sqlx::Sqlite;
///
/// #[idempotent(scope = "charges", on_store_error = "run")]
/// async fn create_charge(tx: Tx<Sqlite>) -> StatusCode {
///     StatusCode::CREATED
/// }
/// ```
///
/// ```standalone_crate,compile_fail
/// use axum::http::StatusCode;
/// use idempotent_runtime::{Tx, idempotent};
/// use sqlx::Sqlite;
///
/// #[idempotent(scope = "charges", claim_after = none)] // write `claim_after = tx`
/// async fn create_charge(tx: Tx<Sqlite>, amount: String) -> StatusCode {
///     StatusCode::CREATED
/// }
/// ```
///
/// # Errors
///
/// - If the commit fails, the client gets 503 instead of the handler's response, and the effects are gone.
/// - If a statement of the handler is lost on its way to PostgreSQL, the statement fails, and nothing is kept. If the
///   handler answers with a recorded status, the client gets 503.
/// - If the answer to `COMMIT` is lost, the engine first finds out from the database whether the transaction was
///   committed.
/// - A serialization failure or a deadlock, at `COMMIT` or in a statement on the [`TxConnection`], is 503
///   `transaction_conflict` with `Retry-After: 0`, whatever the handler answers. With `isolation`, an error that
///   aborted the transaction and that the engine did not see gets the same answer.
/// - If the handler answers with a recorded status, the client gets 500 `transaction_failed` in four cases: the
///   transaction ended while the handler ran, another error aborted it, a deferred constraint fails at its end, or the
///   handler has kept its `Tx`, in another task or in the response.
///
/// # Panics
///
/// Dereferencing panics if no transaction is open: in a handler without `#[idempotent]`, in an extractor and in the
/// expressions of the attribute, which run before the claim, and after the handler has answered.
///
/// # Examples
///
/// ```standalone_crate
/// use axum::http::StatusCode;
/// use idempotent_runtime::{Tx, idempotent};
/// use sqlx::Sqlite;
///
/// #[idempotent(scope = "charges", cache = [201, 402])]
/// async fn create_charge(mut tx: Tx<Sqlite>, amount: String) -> Result<StatusCode, StatusCode> {
///     let inserted = sqlx::query("INSERT INTO charges (amount) VALUES (?)").bind(amount).execute(&mut *tx).await;
///     inserted.map(|_| StatusCode::CREATED).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
/// }
/// ```
pub struct Tx<DB: Database> {
    slot: Arc<Slot<DB>>,
    /// The transaction is taken out of the slot at the first use, and is put back when this value is dropped.
    open: OnceLock<TxConnection<DB>>,
}

impl<DB: Database> Tx<DB> {
    /// Returns the transaction that the guard begins in this slot.
    pub(crate) fn of(slot: Arc<Slot<DB>>) -> Self {
        Self::with(slot, OnceLock::new())
    }

    fn with(slot: Arc<Slot<DB>>, open: OnceLock<TxConnection<DB>>) -> Self {
        slot.enter();
        Self { slot, open }
    }
}

impl<DB: Database> Deref for Tx<DB> {
    type Target = TxConnection<DB>;

    fn deref(&self) -> &TxConnection<DB> {
        self.open.get_or_init(|| TxConnection(self.slot.take_begun()))
    }
}

impl<DB: Database> DerefMut for Tx<DB> {
    fn deref_mut(&mut self) -> &mut TxConnection<DB> {
        if self.open.get().is_none() {
            self.open = OnceLock::from(TxConnection(self.slot.take_begun()));
        }
        self.open.get_mut().expect("set above")
    }
}

impl<DB: Database> Drop for Tx<DB> {
    fn drop(&mut self) {
        if let Some(TxConnection(open)) = self.open.take() {
            self.slot.put(open);
        }
        self.slot.leave();
    }
}

/// For unit tests that call the handler. The handler's writes are rolled back when it ends.
impl<DB: Database> From<Transaction<'static, DB>> for Tx<DB> {
    fn from(transaction: Transaction<'static, DB>) -> Self {
        Self::with(Arc::default(), OnceLock::from(TxConnection(Open::given(transaction))))
    }
}

impl<DB: Database> fmt::Debug for Tx<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx").field("database", &DB::NAME).finish_non_exhaustive()
    }
}
