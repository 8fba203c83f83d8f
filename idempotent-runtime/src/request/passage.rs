//! What a request has come to at its claim: the handler may run, or there is an answer.

use axum::response::Response;

use crate::request::covered_run::CoveredRun;
use crate::request::holding::Holding;
use crate::request::settle::Claimed;
use crate::request::settle_transaction::InTransaction;
use futures_util::future::BoxFuture;

/// The right to run the handler.
#[allow(clippy::large_enum_variant, reason = "it is moved twice, which costs less than a box")]
pub(super) enum Passage {
    /// What is forwarded runs as unguarded, for as long as this handler runs.
    Unguarded {
        _holding: Option<Holding>,
    },
    /// Under the claim of a guard around this one.
    Covered(CoveredRun),
    Claimed(Claimed),
    InTransaction(Box<InTransaction>),
}

/// What a claim has come to.
#[allow(
    clippy::large_enum_variant,
    reason = "it is moved once, which costs less than a box; how large it is depends on features"
)]
pub(super) enum Entered {
    Now(Result<Passage, Response>),
    Later(BoxFuture<'static, Result<Passage, Response>>),
}
