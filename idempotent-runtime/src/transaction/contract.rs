//! The operations that the pipeline needs of a handler's transaction, for every database.

use futures_util::future::BoxFuture;

use crate::policy::values::Isolation;
use crate::store::claim::Claim;
use crate::store::handle::StoreHandle;
use crate::transaction::error::TransactionError;
use crate::transaction::transactions::{Recording, TxClaimRequest};

/// What the engine does with a handler's transaction, for every database.
pub(crate) trait HandlerTransaction: Send + Sync {
    /// Begins the transaction and claims the key in it. No transaction is left open unless the claim is acquired.
    fn claim<'a>(
        &'a self,
        store: &'a StoreHandle,
        claim: TxClaimRequest<'a>,
    ) -> BoxFuture<'a, Result<Claim, TransactionError>>;

    /// Begins the transaction for a request without a key.
    fn begin<'a>(
        &'a self,
        store: &'a StoreHandle,
        isolation: Option<Isolation>,
    ) -> BoxFuture<'a, Result<(), TransactionError>>;

    /// Commits the writes of the handler together with the record, after proving that both are still in the transaction
    /// that was begun.
    fn commit<'a>(
        &'a self,
        store: &'a StoreHandle,
        recording: Option<&'a Recording>,
    ) -> BoxFuture<'a, Result<(), TransactionError>>;

    /// Undoes the writes of the handler. Fails only if the handler has committed them.
    fn roll_back<'a>(&'a self, store: &'a StoreHandle) -> BoxFuture<'a, Result<(), TransactionError>>;

    /// Returns the error of a transaction that the database aborted because of a conflict. If the handler's policy has
    /// `isolation`, and the handler answers with a failure (`is_failure`), a conflict is assumed even if the engine did
    /// not see one. The same holds if a conflict was seen but undone by a savepoint.
    fn conflict<'a>(&'a self, store: &'a StoreHandle, is_failure: bool) -> BoxFuture<'a, Option<TransactionError>>;
}
