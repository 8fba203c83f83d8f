//! Refunds: at most once.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use idempotent_runtime::{Idempotency, idempotent};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::document::BodyErrors;
use crate::error::{ApiError, ErrorBody};
use crate::ledger;
use crate::user::User;

#[derive(Deserialize, ToSchema)]
pub(super) struct NewRefund {
    charge: i64,
    /// The amount, in the smallest unit of the currency.
    #[schema(minimum = 1)]
    amount: i64,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Refund {
    id: i64,
    charge: i64,
    amount: i64,
}

/// Gives money back: **at most once**, on every store.
///
/// A key is required, a double click waits for the first one's response, and after a crash it never runs again: a
/// person finds the unsettled entry in the ledger and asks the card network. The entry survives the crash,
/// because it is written before the network is asked, and in no transaction with the record.
#[utoipa::path(
    post,
    path = "/refunds",
    summary = "Gives money back",
    description = "At most once: if it is unknown whether the refund was given, it is never given again.",
    security(("name" = [])),
    responses(
        (status = 201, body = Refund, description = "The money was given back"),
        (status = 404, body = ErrorBody, description = "The charge is not there, or another user's"),
        (status = 409, body = ErrorBody, description = "Less is left of the charge"),
        BodyErrors,
    ),
)]
#[idempotent(
    scope = "refunds",
    ttl = "7d",
    required,
    caller = user.name,
    fingerprint = (refund.charge, refund.amount),
    in_flight = wait("5s"),
    lease = "3s",
    after_crash = "reject",
)]
pub(super) async fn create_refund(
    State(app): State<App>,
    user: User,
    idempotency: Idempotency,
    Json(refund): Json<NewRefund>,
) -> Result<(StatusCode, Json<Refund>), ApiError> {
    let NewRefund { charge, amount } = refund;
    if amount <= 0 {
        return Err(ApiError::InvalidAmount);
    }
    let currency = app.ledger.charge(charge, &user.name).await?.currency.unwrap_or_default();
    let reference = idempotency.downstream_key("card-network");
    let entry = ledger::NewRefund {
        user: &user.name,
        amount,
        currency: &currency,
        charge,
        key: idempotency.key(),
        attempt: idempotency.attempt(),
        reference: &reference,
    };
    let Some(id) = app.ledger.reserve(entry).await? else {
        return Err(ApiError::RefundTooLarge { left: app.ledger.charge(charge, &user.name).await?.refundable });
    };
    app.move_money(&reference, -amount, &currency).await?;
    app.ledger.settle(id).await?;
    Ok((StatusCode::CREATED, Json(Refund { id, charge, amount })))
}
