//! The reasons why a step has no result.

use std::fmt;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::StatusCode;

use crate::policy::scope::Scope;
use crate::registry::Registry;
use crate::rejection::problem::{CLAIM_LOST, IN_FLIGHT_AFTER_RUN, Rejection, UNAVAILABLE_AFTER_RUN};
use crate::rejection::request::Audience;
use crate::step::rejections::StepRejections;
use crate::store::error::StoreError;

/// Why [`Idempotency::step`](crate::Idempotency::step) has no result, although its closure returned no error.
///
/// Implement `From<StepError>` for the handler's error type, so that `?` works. `anyhow::Error`,
/// `Box<dyn Error + Send + Sync>`, [`StatusCode`] and [`Response`] work already. As a response it is [`StepError::rejection`], rendered as
/// the registry renders rejections. As a [`StatusCode`] it is the status alone: the client gets no `code` and no
/// `Retry-After`. Such a response is never recorded, whatever the policy says of its status: a response with that
/// status, in the same attempt, counts as the rejection.
///
/// # Examples
///
/// ```
/// use axum::response::{IntoResponse, Response};
/// use idempotent_runtime::StepError;
///
/// enum ApiError {
///     OutOfStock,
///     Step(StepError),
/// }
///
/// impl From<StepError> for ApiError {
///     fn from(error: StepError) -> Self {
///         Self::Step(error)
///     }
/// }
///
/// impl IntoResponse for ApiError {
///     fn into_response(self) -> Response {
///         match self {
///             Self::OutOfStock => axum::http::StatusCode::CONFLICT.into_response(),
///             Self::Step(error) => error.into_response(),
///         }
///     }
/// }
/// ```
pub struct StepError {
    step: Box<str>,
    kind: StepErrorKind,
    /// The registry and the scope of the claim, if there is one.
    registry_and_scope: Option<(Registry, Scope)>,
    audience: Audience,
    /// The rejections of steps under the claim, none of which is recorded.
    rejections: Option<Arc<StepRejections>>,
}

/// What happened, and whether the step's closure has run in this attempt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepErrorKind {
    /// Not run: the name is empty, longer than 255 bytes or holds a control character.
    #[error("its name must have 1 to 255 bytes and no control character")]
    InvalidName,
    /// Not run: this execution has already begun a step of this name.
    #[error(
        "this execution has a step of that name already; give each its own, such as `format!(\"ship-{{}}\", line.id)`"
    )]
    Repeated,
    /// Not run: another handler has taken a step of this name under the same claim, in this attempt or in an earlier
    /// one, or may have taken it. This happens if one handler forwards its request to the other, or if code between the
    /// claim and the handlers has called both of them, or one of them twice. Give each step its own name; in a batch,
    /// one for each item.
    #[error("another handler under the same claim has a step of that name, or may have: give each its own")]
    OfAnotherHandler,
    /// Not run: the request has a key, but no guard around it holds a claim for that key. A middleware has called this
    /// after the handler's guard has answered, or the handler has called it after its response was sent. Beneath an
    /// [`IdempotencyLayer`](crate::IdempotencyLayer), the step of a middleware is recorded under the layer's claim.
    #[error("no claim is held for it: the handler's guard has answered")]
    NoClaim,
    /// Not run: the handler takes a `Tx`, or runs under the claim of a handler that does. A rollback would undo what
    /// the step wrote, and the step would still count as done.
    #[error("the handler takes a `Tx`, which has no steps: a rollback would undo their writes and leave their results")]
    InTransaction,
    /// Not run: the store cannot be asked whether the step ran before, or its entry cannot be read.
    #[error("the store cannot be asked for it")]
    Store(#[source] StoreError),
    /// **Run**, and the result could not be recorded while the lease of the step was alive. Recording is tried again in
    /// the background, and a later attempt waits for it. If this process dies before that, the step runs again.
    #[error("it ran, but its result could not be recorded")]
    NotRecorded(#[source] StoreError),
    /// Another attempt has the key or the step, or may have it: this attempt was paused, or could not reach the store,
    /// for longer than its lease, or an operator purged the entry and another process claimed it. The closure may have
    /// run. If it has, its result may not be the one that is recorded.
    #[error("this attempt has lost its claim")]
    ClaimLost,
    /// Not run: another attempt has run it for longer than two leases, although it has lost the key. A later attempt gets
    /// its result.
    #[error("another attempt, which has lost the key, still runs it")]
    StillRunning,
    /// Not run: another request with the same key has run it, or may have run it.
    #[error("it belongs to another request under the same key")]
    OtherRequest,
    /// Not run: a request with other credentials and the same key has run it, or may have run it.
    #[error("it belongs to a request with other credentials under the same key")]
    OtherCredentials,
    /// Not run: an earlier attempt began it and may have run it, and the policy says `after_crash = "reject"`.
    #[error("it may have run before, and `after_crash = \"reject\"` forbids to run it again")]
    OutcomeUnknown,
    /// **Run**, and nothing is recorded: the result cannot be written as JSON, cannot be read back, or would be read back
    /// as another value: `Some(())`, `Some(None)` and a float that is not a number would become `None`.
    #[error("it ran, but its result does not survive JSON")]
    Unserialisable(#[source] serde_json::Error),
    /// **Run**, in this attempt or in an earlier one, and the result is too large: as JSON it has more bytes than
    /// `max_body` of the handler's policy, or the store rejects it at every try. Return less from the step, such as an
    /// id. If the step must run again, give it another name.
    #[error(
        "it ran, but its result is larger than `max_body`, or too large for the store: let the step return less, and give it another name if it must run \
         again"
    )]
    TooLarge,
    /// Not run: the recorded result has another type, because the program has changed. If the step must run again, give
    /// it another name.
    #[error("the recorded result is not of this type: the code was changed since it was recorded")]
    WrongType(#[source] serde_json::Error),
}

/// In bytes. A record key with such a name and the longest key, both encoded, still fits into the index of every store.
pub(super) const LONGEST_NAME: usize = 255;

/// Shortens a text that is too long for a name, because it may be as long as a request.
fn shortened(name: &str) -> &str {
    let longest = LONGEST_NAME.min(name.len());
    let boundary = (0..=longest).rev().find(|&end| name.is_char_boundary(end));
    &name[..boundary.unwrap_or(0)]
}

impl StepError {
    pub(crate) fn new(
        step: &str,
        kind: StepErrorKind,
        registry_and_scope: Option<(Registry, Scope)>,
        audience: Audience,
        rejections: Option<Arc<StepRejections>>,
    ) -> Self {
        let error = Self { step: shortened(step).into(), kind, registry_and_scope, audience, rejections };
        // The handler may turn the error into a response that only keeps its status.
        error.is_answered_by(error.rejection().status());
        error
    }

    fn is_answered_by(&self, status: StatusCode) {
        if let Some(rejections) = &self.rejections {
            rejections.add(status);
        }
    }

    /// Returns the scope of the claim, if there is one.
    pub(crate) fn scope(&self) -> Option<&str> {
        self.registry_and_scope.as_ref().map(|(_, scope)| &**scope)
    }

    /// Returns the name of the step. Of a name that is too long, only the first 255 bytes.
    pub fn step(&self) -> &str {
        &self.step
    }

    /// Returns what happened.
    pub fn kind(&self) -> &StepErrorKind {
        &self.kind
    }

    /// Returns the rejection for the client: `store_unavailable`, `claim_lost`, `in_flight`, `key_reused`,
    /// `other_credentials` or `outcome_unknown`; `step_failed` if the program must be changed.
    pub fn rejection(&self) -> Rejection {
        match self.kind {
            StepErrorKind::Store(_) | StepErrorKind::NotRecorded(_) => UNAVAILABLE_AFTER_RUN,
            StepErrorKind::ClaimLost => CLAIM_LOST,
            StepErrorKind::StillRunning => IN_FLIGHT_AFTER_RUN,
            StepErrorKind::OtherRequest => Rejection::KeyReused,
            StepErrorKind::OtherCredentials => Rejection::OtherCredentials,
            StepErrorKind::OutcomeUnknown => Rejection::OutcomeUnknown,
            StepErrorKind::InvalidName
            | StepErrorKind::Repeated
            | StepErrorKind::OfAnotherHandler
            | StepErrorKind::NoClaim
            | StepErrorKind::InTransaction
            | StepErrorKind::Unserialisable(_)
            | StepErrorKind::TooLarge
            | StepErrorKind::WrongType(_) => Rejection::StepFailed,
        }
    }
}

impl fmt::Debug for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepError").field("step", &self.step).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the step {:?} has no result: {}", self.step, self.kind)
    }
}

impl std::error::Error for StepError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.kind.source()
    }
}

impl IntoResponse for StepError {
    fn into_response(self) -> Response {
        let rejection = self.rejection();
        let response = match &self.registry_and_scope {
            Some((registry, scope)) => registry.reject(scope, rejection, &self.audience),
            None => Registry::render(None, rejection, &self.audience),
        };
        self.is_answered_by(response.status());
        response
    }
}

impl From<StepError> for Response {
    fn from(error: StepError) -> Self {
        error.into_response()
    }
}

impl From<StepError> for StatusCode {
    fn from(error: StepError) -> Self {
        error.rejection().status()
    }
}
