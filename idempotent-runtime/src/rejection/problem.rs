//! The answers of the guard, as problem details (RFC 9457).

use std::time::Duration;

use http::{HeaderValue, StatusCode};

use crate::idempotency_key::{IdempotencyKey, InvalidKey};
use crate::policy::values::KeyFormat;

/// An answer of the guard instead of the handler's response.
///
/// As a response, a rejection is `application/problem+json` with `type`, `title`, `status`, `detail` and the extension
/// member `code`. A guard answers `text/plain` to a client whose `Accept` leaves out JSON.
/// [`RegistryBuilder::render_rejections`](crate::RegistryBuilder::render_rejections) replaces this format for clients
/// that need another one, such as [`stripe`](crate::rejection::stripe())'s.
///
/// # Examples
///
/// ```
/// use axum::response::IntoResponse;
/// use idempotent_runtime::Rejection;
///
/// let response = Rejection::KeyReused.into_response();
/// assert_eq!(response.status(), 422);
/// assert_eq!(response.headers()["content-type"], "application/problem+json");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// The handler requires a key, and the request has none.
    #[non_exhaustive]
    MissingKey {
        /// The header that carries the key; `None` if the handler computes the key from its arguments.
        header: Option<String>,
    },
    /// The key is malformed.
    #[non_exhaustive]
    InvalidKey {
        /// What is wrong with the key.
        reason: InvalidKey,
        /// The least number of characters of a key (`min_key_length`).
        min_length: usize,
        /// The form that keys must have (`key_format`).
        format: KeyFormat,
    },
    /// The key was used for a different request.
    KeyReused,
    /// The key was used with other credentials, and no caller says that both requests have the same client.
    OtherCredentials,
    /// The first request with this key still runs.
    #[non_exhaustive]
    InFlight {
        /// When the client should retry.
        retry_after: Duration,
        /// Whether parts of the request may have taken effect: its handler waited for a
        /// [step](crate::Idempotency::step) that an earlier attempt still runs.
        may_have_run: bool,
    },
    /// This request waited for the first one (`in_flight = wait`), which ended without a recorded response. This
    /// request ran nothing. A retry with the same key executes, or gets the response of another request that executes.
    #[non_exhaustive]
    NotRecorded {
        /// When to retry.
        retry_after: Duration,
    },
    /// The process died while the handler ran, or the handler panicked, and its policy forbids a second execution.
    OutcomeUnknown,
    /// The handler ran, and another process may have run it too. There are three causes: the lease expired because this
    /// process was stopped or could not reach the store; an operator resolved the key; or an operator purged the key
    /// and another process claimed it. A retry gets the response that was recorded.
    ///
    /// If the store has only forgotten the claim, the key is claimed again, and the response is recorded and sent.
    #[non_exhaustive]
    ClaimLost {
        /// When the client should retry.
        retry_after: Duration,
    },
    /// The first request has ended, but its response cannot be replayed: it was too large to record, had no end, or
    /// broke off, or the handler itself committed the transaction of its `Tx`.
    #[non_exhaustive]
    ResponseNotRecorded {
        /// The status of that response.
        status: StatusCode,
    },
    /// The caller has as many operations in flight as the registry allows, or the registry or the scope has reached its
    /// limit of running handlers.
    #[non_exhaustive]
    TooManyInFlight {
        /// When the client should retry.
        retry_after: Duration,
        /// Whether the limit of the caller was reached (429), and not that of the registry or the scope (503).
        of_caller: bool,
    },
    /// The store is unavailable.
    #[non_exhaustive]
    StoreUnavailable {
        /// When the client should retry.
        retry_after: Duration,
        /// Whether the request may have taken effect: the store became unavailable while or after the handler ran.
        may_have_run: bool,
    },
    /// The database aborted the handler's transaction because it conflicts with another one: a serialization failure or
    /// a deadlock. Nothing was kept, and a retry is likely to succeed.
    TransactionConflict,
    /// The handler's transaction failed because of a mistake in the program. Some examples: the handler takes a `Tx` of
    /// another database than that of its store, or takes two; the handler did not give the `Tx` back; a guard around
    /// the handler has the same key; the transaction ended, was aborted or became read-only while the handler ran; a
    /// deferred constraint failed at the end of the transaction. The program must be changed.
    TransactionFailed,
    /// The value of `fingerprint = expr` has no digest, because it contains a float that is not finite, or its
    /// `Serialize` fails. The program must be changed.
    FingerprintFailed,
    /// A step of the handler cannot run, or its result cannot be recorded or read. The program must be changed.
    ///
    /// Only a handler sends this answer, through a [`StepError`](crate::StepError).
    StepFailed,
}

/// Every [`Rejection::code`].
#[cfg(any(feature = "testing", feature = "utoipa", feature = "aide"))]
pub(crate) const CODES: [&str; 15] = [
    "missing_key",
    "invalid_key",
    "key_reused",
    "other_credentials",
    "in_flight",
    "not_recorded",
    "outcome_unknown",
    "claim_lost",
    "response_not_recorded",
    "too_many_in_flight",
    "store_unavailable",
    "transaction_conflict",
    "transaction_failed",
    "fingerprint_failed",
    "step_failed",
];

impl Rejection {
    /// Returns the status of the response.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::MissingKey { .. } | Self::InvalidKey { .. } => StatusCode::BAD_REQUEST,
            Self::KeyReused | Self::OtherCredentials => StatusCode::UNPROCESSABLE_ENTITY,
            Self::InFlight { .. }
            | Self::NotRecorded { .. }
            | Self::OutcomeUnknown
            | Self::ClaimLost { .. }
            | Self::ResponseNotRecorded { .. } => StatusCode::CONFLICT,
            Self::TooManyInFlight { of_caller: true, .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::TooManyInFlight { .. } | Self::StoreUnavailable { .. } | Self::TransactionConflict => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::TransactionFailed | Self::FingerprintFailed | Self::StepFailed => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the stable code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MissingKey { .. } => "missing_key",
            Self::InvalidKey { .. } => "invalid_key",
            Self::KeyReused => "key_reused",
            Self::OtherCredentials => "other_credentials",
            Self::InFlight { .. } => "in_flight",
            Self::NotRecorded { .. } => "not_recorded",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::ClaimLost { .. } => "claim_lost",
            Self::ResponseNotRecorded { .. } => "response_not_recorded",
            Self::TooManyInFlight { .. } => "too_many_in_flight",
            Self::StoreUnavailable { .. } => "store_unavailable",
            Self::TransactionConflict => "transaction_conflict",
            Self::TransactionFailed => "transaction_failed",
            Self::FingerprintFailed => "fingerprint_failed",
            Self::StepFailed => "step_failed",
        }
    }

    /// Returns the name for logs and metrics. This is the code, unless an execution has an outcome of the same name.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::NotRecorded { .. } => "waited_not_recorded",
            rejection => rejection.code(),
        }
    }

    /// Returns the stable `type` of the problem: the URL of its documentation.
    /// [`RegistryBuilder::problem_types`](crate::RegistryBuilder::problem_types) replaces this URL.
    pub fn problem_type(&self) -> &'static str {
        macro_rules! documented_at {
            ($variant:literal) => {
                concat!(
                    "https://docs.rs/idempotent-runtime/latest/idempotent_runtime/enum.Rejection.html#variant.",
                    $variant
                )
            };
        }
        match self {
            Self::MissingKey { .. } => documented_at!("MissingKey"),
            Self::InvalidKey { .. } => documented_at!("InvalidKey"),
            Self::KeyReused => documented_at!("KeyReused"),
            Self::OtherCredentials => documented_at!("OtherCredentials"),
            Self::InFlight { .. } => documented_at!("InFlight"),
            Self::NotRecorded { .. } => documented_at!("NotRecorded"),
            Self::OutcomeUnknown => documented_at!("OutcomeUnknown"),
            Self::ClaimLost { .. } => documented_at!("ClaimLost"),
            Self::ResponseNotRecorded { .. } => documented_at!("ResponseNotRecorded"),
            Self::TooManyInFlight { .. } => documented_at!("TooManyInFlight"),
            Self::StoreUnavailable { .. } => documented_at!("StoreUnavailable"),
            Self::TransactionConflict => documented_at!("TransactionConflict"),
            Self::TransactionFailed => documented_at!("TransactionFailed"),
            Self::FingerprintFailed => documented_at!("FingerprintFailed"),
            Self::StepFailed => documented_at!("StepFailed"),
        }
    }

    /// Returns the code appended to this base, or [`problem_type`](Self::problem_type) without a base.
    pub(super) fn problem_type_in(&self, base: Option<&str>) -> String {
        base.map_or_else(|| self.problem_type().to_owned(), |base| format!("{base}{code}", code = self.code()))
    }

    /// Returns the stable summary for people.
    pub fn title(&self) -> &'static str {
        match self {
            Self::MissingKey { .. } => "An idempotency key is required",
            Self::InvalidKey { .. } => "The idempotency key is malformed",
            Self::KeyReused => "The idempotency key was used for a different request",
            Self::OtherCredentials => "The idempotency key was used with other credentials",
            Self::InFlight { .. } => "A request with this idempotency key is still running",
            Self::NotRecorded { .. } => "The first request with this idempotency key ended without a recorded response",
            Self::OutcomeUnknown => "The outcome of the first request is unknown",
            Self::ClaimLost { .. } => "This request lost its idempotency key while it ran",
            Self::ResponseNotRecorded { .. } => "The response of the first request was not recorded",
            Self::TooManyInFlight { of_caller: true, .. } => "Too many requests of this caller are still running",
            Self::TooManyInFlight { .. } => "Too many requests are still running",
            Self::StoreUnavailable { .. } => "Idempotency keys cannot be checked now",
            Self::TransactionConflict => "The transaction of this request conflicts with another one",
            Self::TransactionFailed => "The transaction of this request failed",
            Self::FingerprintFailed => "This request cannot be compared with others",
            Self::StepFailed => "A step of this request failed",
        }
    }

    /// Returns a text that says what happened to this request, and what the client should do. The text never contains
    /// the key.
    pub fn detail(&self) -> String {
        match self {
            Self::MissingKey { header } => {
                let place = header.as_ref().map(|header| format!(" in the header `{header}`")).unwrap_or_default();
                format!("Send a key that is unique to this operation{place}, and the same key on every retry.")
            }
            Self::InvalidKey { reason, format: KeyFormat::Uuid, .. } => format!(
                "{reason}. Send a UUID with its hyphens, such as 6c5f2a04-54f0-4c3f-9d0f-2f1b4f0e7c11, bare or as a quoted string.",
                reason = capitalised(reason)
            ),
            Self::InvalidKey { reason, min_length, .. } => format!(
                "{reason}. Send {min_length} to {max} visible ASCII characters, bare or as a quoted string.",
                reason = capitalised(reason),
                max = IdempotencyKey::MAX_LENGTH
            ),
            Self::ResponseNotRecorded { status } => format!(
                "The request has been executed and answered with status {status}. Its response cannot be repeated: the response was too large, had no end or broke off, or the transaction was committed without the response.",
                status = status.as_u16()
            ),
            Self::KeyReused => {
                "This request ran nothing. A retry must repeat the first request with this key; this one asks for something else.".to_owned()
            }
            Self::OtherCredentials => {
                "This key was used by a request with other credentials. This request ran nothing. Retry with the credentials of the first request.".to_owned()
            }
            Self::InFlight { may_have_run: true, .. } => PARTS_MAY_HAVE_RUN.to_owned(),
            Self::InFlight { may_have_run: false, .. } => FIRST_RUNS.to_owned(),
            Self::NotRecorded { .. } => {
                "This request ran nothing; the first one ended without a recorded response. Retry with the same key.".to_owned()
            }
            Self::OutcomeUnknown => {
                "The server did not finish this request, which may have taken effect. It is not run again.".to_owned()
            }
            Self::ClaimLost { .. } => {
                "This request was executed, but it lost its key while it ran. Another request with this key may have been executed too. Retry with the same key to get the response that counts.".to_owned()
            }
            Self::TooManyInFlight { .. } => {
                "This request ran nothing. Retry with the same key when an earlier request has ended.".to_owned()
            }
            Self::StoreUnavailable { may_have_run: true, .. } => {
                "This request may have taken effect, or not. Retry, and only with the same key.".to_owned()
            }
            Self::StoreUnavailable { may_have_run: false, .. } => {
                "This request ran nothing; an earlier one with its key may have taken effect. Retry, and only with the same key.".to_owned()
            }
            Self::TransactionConflict => {
                "The database aborted the transaction of this request. Nothing of it was kept. Retry with the same key.".to_owned()
            }
            Self::TransactionFailed => {
                "The server did not commit the transaction of this request, and will not commit that of a retry until the server is fixed.".to_owned()
            }
            Self::FingerprintFailed => {
                "This request ran nothing, and a retry will not either until the server is fixed.".to_owned()
            }
            Self::StepFailed => {
                "This request may have taken effect in part, and a retry will not get further until the server is fixed.".to_owned()
            }
        }
    }

    /// Returns how long the client should wait before a retry, if a retry can help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::InFlight { retry_after, .. }
            | Self::NotRecorded { retry_after }
            | Self::ClaimLost { retry_after }
            | Self::TooManyInFlight { retry_after, .. }
            | Self::StoreUnavailable { retry_after, .. } => Some(*retry_after),
            Self::TransactionConflict => Some(Duration::ZERO),
            _ => None,
        }
    }

    /// Returns the value of `Retry-After` in whole seconds, rounded up.
    pub(crate) fn retry_after_seconds(&self) -> Option<HeaderValue> {
        let retry_after = self.retry_after()?;
        Some(HeaderValue::from(retry_after.as_secs().saturating_add(u64::from(retry_after.subsec_nanos() > 0))))
    }
}

fn capitalised(reason: &InvalidKey) -> String {
    let reason = reason.to_string();
    let (first, rest) = reason.split_at(1);
    first.to_uppercase() + rest
}

const FIRST_RUNS: &str =
    "This request ran nothing; the first one still runs. Retry with the same key to get its response.";
const PARTS_MAY_HAVE_RUN: &str = "Parts of this request may have taken effect, and an earlier attempt still runs another part. Retry with the same key.";

/// How long a rejected client should wait: long enough to protect the server, and short enough to be unnoticed by
/// people.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The store is unavailable, and the request has run nothing.
pub(crate) const UNAVAILABLE: Rejection = Rejection::StoreUnavailable { retry_after: RETRY_AFTER, may_have_run: false };

pub(crate) const UNAVAILABLE_AFTER_RUN: Rejection =
    Rejection::StoreUnavailable { retry_after: RETRY_AFTER, may_have_run: true };

pub(crate) const IN_FLIGHT: Rejection = Rejection::InFlight { retry_after: RETRY_AFTER, may_have_run: false };

pub(crate) const IN_FLIGHT_AFTER_RUN: Rejection = Rejection::InFlight { retry_after: RETRY_AFTER, may_have_run: true };

pub(crate) const CLAIM_LOST: Rejection = Rejection::ClaimLost { retry_after: RETRY_AFTER };
