//! What a request comes to at its claim: the handler may run, or there is an answer.

use axum::response::Response;

use crate::request::active_guard::ActiveGuard;
use crate::request::covered_run::CoveredRun;
use crate::request::settle::Claimed;
use crate::request::settle_transaction::InTransaction;
use futures_util::future::BoxFuture;

/// How the handler runs.
#[allow(clippy::large_enum_variant, reason = "it is moved twice, which costs less than a box")]
pub(super) enum HandlerRun {
    /// What is forwarded runs as unguarded, for as long as this handler runs.
    Unguarded {
        _guard: Option<ActiveGuard>,
    },
    /// Under the claim of a guard around this one.
    Covered(CoveredRun),
    Claimed(Claimed),
    InTransaction(Box<InTransaction>),
}

/// What a claim comes to: a handler that may run, or the answer in its place.
#[allow(
    clippy::large_enum_variant,
    reason = "it is moved once, which costs less than a box; how large it is depends on features"
)]
pub(super) enum ClaimOutcome {
    Now(Result<HandlerRun, Response>),
    Later(BoxFuture<'static, Result<HandlerRun, Response>>),
}
