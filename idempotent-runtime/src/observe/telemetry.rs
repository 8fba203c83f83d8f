//! One span per guarded request, and the events that an operator must see. No key, caller or body ever appears in them.

use std::error::Error;
use std::fmt::Display;
use std::time::SystemTime;

use tracing::Span;
use tracing::field::Empty;

use crate::fingerprint::difference::Difference;
use crate::fingerprint::expression::Unserialisable;
use crate::observe;
use crate::policy::Policy;
use crate::rejection::problem::Rejection;
use crate::store::error::StoreError;
use crate::transaction::error::TransactionError;

/// Logs an event with the handler that it concerns.
macro_rules! of_handler {
    ($level:ident, $policy:expr, $($event:tt)+) => {
        tracing::$level!(scope = $policy.scope(), handler = %$policy, $($event)+)
    };
}

/// Creates the span of a guarded request. The request's outcome, and the trace of a replayed response, are recorded in
/// the span when they are known.
pub(crate) fn span(policy: &Policy) -> Span {
    tracing::info_span!(
        "idempotent",
        idempotency.scope = policy.scope(),
        idempotency.outcome = Empty,
        idempotency.recorded_by = Empty
    )
}

/// How a guarded request ended.
#[derive(Clone, Copy)]
pub(crate) enum Outcome {
    /// The handler ran and its response is recorded.
    Recorded,
    /// The handler ran, and its policy does not record this response.
    NotRecorded,
    /// The handler ran. Its response is too large to record, has no end, or is not recorded for another reason.
    TooLarge,
    /// The handler ran and the body of its response broke off.
    Broken,
    /// The handler ran and its response could not be recorded at once.
    RecordingFailed,
    /// The handler ran, and another process has its key now.
    ClaimLost,
    /// The handler ran beneath a layer, and its own guard decides what is recorded.
    LeftToHandler,
    /// The handler panicked.
    Panicked,
    /// The service beneath a layer answered with an error.
    Failed,
    /// The handler runs without a claim, because the store is unreachable. Or the handler ran in a transaction without
    /// a key.
    Unguarded,
    /// The recorded response was sent.
    Replayed { recorded_at: SystemTime },
    /// A rejection with this code was sent.
    Rejected(&'static str),
}

impl Outcome {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Recorded => "recorded",
            Self::NotRecorded => "not_recorded",
            Self::TooLarge => "too_large",
            Self::Broken => "broken",
            Self::RecordingFailed => "recording_failed",
            Self::ClaimLost => "claim_lost",
            Self::LeftToHandler => "left_to_handler",
            Self::Panicked => "panicked",
            Self::Failed => "failed",
            Self::Unguarded => "unguarded",
            Self::Replayed { .. } => "replayed",
            Self::Rejected(code) => code,
        }
    }

    /// Counts the outcome and writes it to the request's span. Called once for each request.
    pub(crate) fn report(self, span: &Span, policy: &Policy) {
        observe::outcome(policy.scope(), self.as_str());
        if let Self::Replayed { recorded_at } = self {
            observe::replayed(recorded_at);
        }
        self.correct(span);
    }

    /// Writes the final outcome to the span of a request whose outcome was already counted.
    pub(crate) fn correct(self, span: &Span) {
        span.record("idempotency.outcome", self.as_str());
        tracing::debug!(parent: span, outcome = self.as_str(), "a guarded request has ended");
    }
}

/// Logs and counts a key that was used for another request. The event contains the name of the header, never its value.
pub(crate) fn other_request(scope: &str, difference: &Difference) {
    let (differs, header) = (difference.as_str(), difference.header());
    observe::mismatched(scope, differs, header);
    // Most differences have no header.
    let header = (!header.is_empty()).then_some(header);
    tracing::info!(scope, differs, header, "a key was used for another request: it is rejected, and nothing ran");
}

/// Logs that `fingerprint = expr` has a value that cannot be compared.
pub(crate) fn no_fingerprint(policy: &Policy, error: Unserialisable) {
    of_handler!(
        error,
        policy,
        "the value of `fingerprint = …` cannot be compared: the request is rejected, and nothing ran: {error}"
    );
}

/// Logs that a claim failed in the store.
pub(crate) fn claim_failed(policy: &Policy, store: &str, error: &StoreError) {
    if matches!(error, StoreError::OverQuota) {
        return over_quota(policy, store);
    }
    of_handler!(error, policy, store, error = error as &dyn Error, "the store could not be asked for a claim");
}

fn over_quota(policy: &Policy, store: &str) {
    of_handler!(
        warn,
        policy,
        store,
        "a caller has used up its share of the store: its new keys are rejected, and those of others accepted"
    );
}

/// Logs that the handler ran, and that the store has not yet accepted its result.
pub(crate) fn settling_failed(
    policy: &Policy,
    store: &str,
    what: &'static str,
    lease_is_over: bool,
    error: &StoreError,
) {
    let claim = if lease_is_over { "its lease has expired" } else { "its claim is held" };
    of_handler!(
        error,
        policy,
        store,
        error = error as &dyn Error,
        "the handler ran, but its {what} failed; {claim} and it is tried again"
    );
}

/// Logs that the store will never accept this record.
pub(crate) fn record_rejected(policy: &Policy, store: &str, error: &StoreError) {
    tracing::warn!(
        error = error as &dyn Error,
        scope = policy.scope(),
        handler = %policy,
        store,
        "the store will never accept this response: it is sent and not recorded; lower `max_body` or raise the store's limit"
    );
}

/// Logs that a step ran, and that the store has not yet accepted its result.
pub(crate) fn step_not_recorded(scope: &str, store: &str, step: &str, error: &StoreError) {
    tracing::error!(
        scope,
        store,
        step,
        error = error as &dyn Error,
        "a step ran, but its result could not be recorded; its claim is held and it is tried again"
    );
}

/// Logs that the handler of a transaction has answered, but a request that it forwarded still runs.
pub(crate) fn commit_delayed(policy: &Policy) {
    tracing::warn!(
        scope = policy.scope(),
        handler = %policy,
        "a handler with a `Tx` has ended, but a request that it forwarded still runs: the client gets 503, and the transaction is \
         committed when that request has ended"
    );
}

/// Logs that `Idempotency` was extracted from a request that may belong to another client than the running handler's
/// request.
pub(crate) fn unknown_handler() {
    tracing::error!(
        "`Idempotency` was extracted from a request that a handler has copied or made: it has no key and no steps, because the request \
         may be another caller's; make it an argument of the handler, or extract it from the `Request` that is the handler's last argument"
    );
}

/// Logs and counts a step that has no result. The source of the error is not logged, because it may quote the result.
pub(crate) fn step_failed(scope: &str, step: &str, rejection: &Rejection, reason: impl Display) {
    observe::step_failed(scope, rejection.code());
    match rejection {
        Rejection::StepFailed => tracing::error!(scope, step, "a step of a handler cannot be taken: {reason}"),
        Rejection::OutcomeUnknown => {
            tracing::error!(
                scope,
                step,
                "the outcome of a step is unknown: it does not run again until an operator resolves it"
            );
        }
        // `other_request` has already logged the difference.
        Rejection::KeyReused | Rejection::OtherCredentials => {}
        _ => tracing::warn!(scope, step, "a step has no result: {reason}"),
    }
}

/// Logs that the response of a handler can no longer be recorded.
pub(crate) fn settling_given_up(policy: &Policy, store: &str, what: &'static str) {
    of_handler!(error, policy, store, "the handler ran, but its {what} failed until the ttl expired");
}

/// Logs that another process had the claim when the handler ended.
pub(crate) fn claim_lost(policy: &Policy, store: &str) {
    of_handler!(error, policy, store, "the handler ran, but its claim was lost before its response could be recorded");
}

/// Logs that the store gave a key to another request although the key's handler still runs in this process.
pub(crate) fn claim_handed_over(policy: &Policy, store: &str) {
    of_handler!(
        warn,
        policy,
        store,
        "the store had lost the claim of a handler that runs in this process: the handler keeps its key, and a duplicate is not \
         executed"
    );
}

/// Logs that the handler's transaction could not be begun or committed.
pub(crate) fn transaction_failed(policy: &Policy, store: &str, error: &TransactionError) {
    let source = error as &dyn Error;
    match error {
        // Conflicts are part of the isolation that the application has chosen: the client retries.
        TransactionError::Conflict(_) => of_handler!(
            info,
            policy,
            store,
            error = source,
            "a handler's transaction conflicts with another one: nothing was kept, and the client is told to retry"
        ),
        TransactionError::Unseen => of_handler!(
            warn,
            policy,
            store,
            error = source,
            "a handler's transaction was aborted: nothing was kept, and the client is told to retry"
        ),
        TransactionError::Store(StoreError::OverQuota) => over_quota(policy, store),
        // Also the commit of a request without a key, whose outcome nothing shows.
        TransactionError::Store(_) => {
            of_handler!(
                error,
                policy,
                store,
                error = source,
                "the store failed a handler's transaction: the client gets 503"
            );
        }
        TransactionError::RolledBack(_) => of_handler!(
            error,
            policy,
            store,
            error = source,
            "the store failed a handler's transaction: nothing was kept, and the client gets 503"
        ),
        TransactionError::Overtaken => of_handler!(
            error,
            policy,
            store,
            error = source,
            "the key of a handler's transaction has a record of another request: nothing was kept, and the client gets 503"
        ),
        TransactionError::Unknown(_) => of_handler!(
            error,
            policy,
            store,
            error = source,
            "the outcome of a handler's transaction is unknown: the client gets 503, and a retry with the key finds out"
        ),
        _ => of_handler!(error, policy, store, error = source, "the handler's transaction failed: the client gets 500"),
    }
}

/// Logs that the handler requests two transactions in different ways.
pub(crate) fn second_transaction(policy: &Policy) {
    of_handler!(error, policy, "a handler has two arguments `Tx`, but one transaction; remove one of them");
}

/// Logs that a guard around this handler has claimed the key under which the handler's transaction would record.
pub(crate) fn covered_transaction(policy: &Policy) {
    of_handler!(
        error,
        policy,
        "a guard around this handler has the same scope, so its `Tx` cannot record the response: give each its own scope"
    );
}

/// Logs that a middleware or handler inside a guard forwarded its request twice under one claim.
pub(crate) fn second_run(policy: &Policy) {
    of_handler!(
        warn,
        policy,
        "something sent a request twice under one claim: the second one was rejected and ran nothing; put what retries or \
         hedges around the outermost guard of this scope, or give the guards scopes of their own"
    );
}

/// Logs that there is no registry, or that the registry cannot serve this handler.
pub(crate) fn misconfigured(policy: &Policy, has_registry: bool) {
    match (policy.store(), has_registry) {
        (None, true) => tracing::error!(
            scope = policy.scope(),
            handler = %policy,
            "another handler has the same default scope: the request ran nothing; give each its own with `scope = \"…\"`"
        ),
        (_, false) => tracing::error!(
            scope = policy.scope(),
            handler = %policy,
            "no registry is installed: the request ran nothing; call `idempotent_runtime::install(store)` at start-up, or add \
             `.layer(registry.layer())` after the routes and after each `IdempotencyLayer`"
        ),
        (Some(name), true) => tracing::error!(
            scope = policy.scope(),
            handler = %policy,
            store = name,
            "no registry with this store: the request ran nothing; add it with \
             `Registry::builder(default_store).store(name, store)`"
        ),
    }
}
