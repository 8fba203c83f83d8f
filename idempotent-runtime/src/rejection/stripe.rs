//! Rejections in the format of Stripe's API.

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::rejection::problem::Rejection;
use crate::rejection::request::RejectedRequest;

/// Stripe's SDKs follow this header before they check the status.
static SHOULD_RETRY: HeaderName = HeaderName::from_static("stripe-should-retry");

/// Renders a rejection in the format of Stripe's API, for
/// [`render_rejections`](crate::RegistryBuilder::render_rejections).
///
/// Stripe's own SDKs, and programs that are written for them, read errors only from the member `error` of the body.
/// stripe-node treats every body without that member as a success, whatever the status: it even returns a 409 with
/// problem details as a `PaymentIntent`.
///
/// | rejection | status | `type` | `code` | raised by stripe-node, stripe-python | `Stripe-Should-Retry` |
/// |---|---|---|---|---|---|
/// | `missing_key` | 400 | `invalid_request_error` | `missing_key` | `StripeInvalidRequestError`, `InvalidRequestError` | false |
/// | `invalid_key` | 400 | `invalid_request_error` | `invalid_key` | `StripeInvalidRequestError`, `InvalidRequestError` | false |
/// | `key_reused` | 400 | `idempotency_error` | `key_reused` | `StripeIdempotencyError`, `IdempotencyError` | false |
/// | `other_credentials` | 400 | `idempotency_error` | `other_credentials` | `StripeIdempotencyError`, `IdempotencyError` | false |
/// | `in_flight` | 409 | `idempotency_error` | `idempotency_key_in_use` | `StripeAPIError`, `APIError` | true |
/// | `not_recorded` | 409 | `idempotency_error` | `idempotency_key_in_use` | `StripeAPIError`, `APIError` | true |
/// | `claim_lost` | 409 | `idempotency_error` | `idempotency_key_in_use` | `StripeAPIError`, `APIError` | true |
/// | `too_many_in_flight` | 429 | `invalid_request_error` | `rate_limit` | `StripeRateLimitError`, `RateLimitError` | true |
/// | `store_unavailable` | 503 | `api_error` | `store_unavailable` | `StripeAPIError`, `APIError` | true |
/// | `transaction_conflict` | 503 | `api_error` | `transaction_conflict` | `StripeAPIError`, `APIError` | true |
/// | `outcome_unknown` | 500 | `api_error` | `outcome_unknown` | `StripeAPIError`, `APIError` | false |
/// | `response_not_recorded` | 500 | `api_error` | `response_not_recorded` | `StripeAPIError`, `APIError` | false |
/// | `transaction_failed` | 500 | `api_error` | `transaction_failed` | `StripeAPIError`, `APIError` | false |
/// | `fingerprint_failed` | 500 | `api_error` | `fingerprint_failed` | `StripeAPIError`, `APIError` | false |
/// | `step_failed` | 500 | `api_error` | `step_failed` | `StripeAPIError`, `APIError` | false |
///
/// `code` is Stripe's code if Stripe has one, and [`Rejection::code`] otherwise. `message` says what happened and what
/// to do. `doc_url` is [`RejectedRequest::problem_type`]. `Stripe-Should-Retry: true`, always with `Retry-After`, makes
/// the SDKs retry with the same key, as often as their `maxNetworkRetries` allows. `false` stops them.
///
/// Some statuses differ from [`Rejection::status`], because Stripe's clients would draw the wrong conclusion from that
/// status:
///
/// - The SDKs report a reused key as an idempotency error only if the status is 400.
/// - If the request was or may have been executed, and no retry can show the outcome, the status is 500. Stripe's
///   clients look up the outcome after a 500. After a 4xx they assume that the request had no effect, and may send it
///   again with a new key.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::{RejectedRequest, Rejection, Registry, rejection, store::MemoryStore};
///
/// let registry = Registry::builder(MemoryStore::new()).render_rejections(rejection::stripe).build();
///
/// let response = rejection::stripe(Rejection::KeyReused, &RejectedRequest::default());
/// assert_eq!(response.status(), 400);
/// assert_eq!(response.headers()["stripe-should-retry"], "false");
/// ```
#[expect(clippy::needless_pass_by_value, reason = "`render_rejections` gives the rejection away")]
pub fn stripe(rejection: Rejection, request: &RejectedRequest) -> Response {
    let (status, kind, code) = dialect(&rejection);
    let error = StripeError {
        r#type: kind,
        code,
        message: format!("{}. {}", rejection.title(), rejection.detail()),
        doc_url: request.problem_type(&rejection),
    };
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    let mut response = (status, content_type, error.into_body()).into_response();
    let retry_after = rejection.retry_after_seconds();
    let should_retry = HeaderValue::from_static(if retry_after.is_some() { "true" } else { "false" });
    response.headers_mut().insert(SHOULD_RETRY.clone(), should_retry);
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}

/// Returns the status, the `type` and the `code` of Stripe's API.
fn dialect(rejection: &Rejection) -> (StatusCode, &'static str, &'static str) {
    match rejection {
        Rejection::MissingKey { .. } | Rejection::InvalidKey { .. } => {
            (StatusCode::BAD_REQUEST, "invalid_request_error", rejection.code())
        }
        Rejection::KeyReused | Rejection::OtherCredentials => {
            (StatusCode::BAD_REQUEST, "idempotency_error", rejection.code())
        }
        Rejection::InFlight { .. } | Rejection::NotRecorded { .. } | Rejection::ClaimLost { .. } => {
            (StatusCode::CONFLICT, "idempotency_error", "idempotency_key_in_use")
        }
        Rejection::TooManyInFlight { .. } => (StatusCode::TOO_MANY_REQUESTS, "invalid_request_error", "rate_limit"),
        Rejection::StoreUnavailable { .. } | Rejection::TransactionConflict => {
            (StatusCode::SERVICE_UNAVAILABLE, "api_error", rejection.code())
        }
        Rejection::OutcomeUnknown
        | Rejection::ResponseNotRecorded { .. }
        | Rejection::TransactionFailed
        | Rejection::FingerprintFailed
        | Rejection::StepFailed => (StatusCode::INTERNAL_SERVER_ERROR, "api_error", rejection.code()),
    }
}

#[derive(Serialize)]
struct Body {
    error: StripeError,
}

#[derive(Serialize)]
struct StripeError {
    r#type: &'static str,
    code: &'static str,
    message: String,
    doc_url: String,
}

impl StripeError {
    fn into_body(self) -> Vec<u8> {
        serde_json::to_vec(&Body { error: self }).expect("strings serialise")
    }
}
