//! Extracts the argument `Tx` of a handler, and joins its transaction to the request.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::response::Response;
use http::request::Parts;
use sqlx::Database;

use crate::registry::Registry;
use crate::rejection::problem::Rejection;
use crate::rejection::request::RejectedRequest;
use crate::request::context::Execution;
use crate::transaction::slot::Slot;
use crate::transaction::tx::Tx;

impl<S: Sync, DB: Database> FromRequestParts<S> for Tx<DB> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        let slot = Arc::<Slot<DB>>::default();
        let execution = Execution::of(&mut parts.extensions);
        if execution.is_extracting() {
            tracing::error!(
                "a `Tx` is extracted after the claim, but its transaction begins with the claim: the request fails; name it in `claim_after`"
            );
        } else if execution.join(slot.clone()) {
            return Ok(Self::of(slot));
        } else {
            tracing::error!("a handler has two arguments `Tx`, but one transaction; remove one of them");
        }
        let registry = Registry::serving(&parts.extensions);
        let head = || RejectedRequest::from(&*parts);
        let audience = Registry::audience(registry.as_ref(), &parts.headers, head);
        Err(Registry::render(registry.as_ref(), Rejection::TransactionFailed, &audience))
    }
}
