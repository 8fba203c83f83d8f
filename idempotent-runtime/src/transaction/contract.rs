//! What the pipeline asks of a handler's transaction, whatever its database is.

use futures_util::future::BoxFuture;

use crate::policy::values::Isolation;
use crate::store::claim::Claim;
use crate::store::handle::StoreHandle;
use crate::transaction::error::TransactionError;
use crate::transaction::transactions::{Recording, TxClaimRequest};

/// What the engine does with a handler's transaction, whatever its database is.
pub(crate) trait HandlerTransaction: Send + Sync {
    /// Begins it and claims the key in it; nothing is begun unless the claim is acquired.
    fn claim<'a>(
        &'a self,
        store: &'a StoreHandle,
        claim: TxClaimRequest<'a>,
    ) -> BoxFuture<'a, Result<Claim, TransactionError>>;

    /// Begins it for a request that has no key.
    fn begin<'a>(
        &'a self,
        store: &'a StoreHandle,
        isolation: Option<Isolation>,
    ) -> BoxFuture<'a, Result<(), TransactionError>>;

    /// Commits what the handler wrote, and the record with it, once it is proven that both are still in the transaction that
    /// was begun.
    fn commit<'a>(
        &'a self,
        store: &'a StoreHandle,
        recording: Option<&'a Recording>,
    ) -> BoxFuture<'a, Result<(), TransactionError>>;

    /// Undoes what the handler wrote; fails only where the handler has committed it.
    fn roll_back<'a>(&'a self, store: &'a StoreHandle) -> BoxFuture<'a, Result<(), TransactionError>>;

    /// Tells if the database has aborted it for the sake of another one. Where that was not seen, it counts as the cause of an
    /// answer that tells of a failure, in a handler that asks for isolation. The same holds for one that was seen and undone by a
    /// savepoint.
    fn conflict<'a>(&'a self, store: &'a StoreHandle, is_failure: bool) -> BoxFuture<'a, Option<TransactionError>>;
}
