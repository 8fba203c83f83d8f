//! Charges on a store without transactions: at least once.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use idempotent_runtime::{Idempotency, idempotent};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::document::BodyErrors;
use crate::error::{ApiError, ErrorBody};
use crate::ledger::NewEntry;
use crate::user::User;

/// The body of a request for a charge.
#[derive(Clone, Deserialize, Serialize, ToSchema)]
pub struct NewCharge {
    /// The amount, in the smallest unit of the currency.
    #[schema(minimum = 1)]
    pub amount: i64,
    /// The currency, such as `EUR`.
    #[schema(pattern = "^[A-Z]{3}$")]
    pub currency: String,
    /// The last four digits of the card.
    pub card: String,
}

/// The body of the response.
#[derive(Serialize, ToSchema)]
pub struct Charge {
    id: i64,
    amount: i64,
    currency: String,
    card: String,
    attempt: u32,
}

/// Charges a card: **at least once**, and once in effect.
///
/// A process that dies in here leaves its claim behind; when the lease has expired, a retry runs the handler again, as
/// attempt 2. No customer is charged twice, since every attempt has the same reference: the card network recognises it, and
/// the ledger enters it once. A declined card is final too.
#[idempotent(scope = "charges", shared_scope, ttl = "24h", cache = [201, 402], caller = user.name, lease = "3s")]
#[utoipa::path(
    post,
    path = "/charges",
    summary = "Charges a card",
    description = "A retry with the same key moves the money once.",
    security(("name" = [])),
    responses(
        (status = 201, body = Charge, description = "The card was charged"),
        (status = 402, body = ErrorBody, description = "The card network declined the charge, which is final"),
        BodyErrors,
    ),
)]
pub async fn create_charge(
    State(app): State<App>,
    user: User,
    idempotency: Idempotency,
    Json(order): Json<NewCharge>,
) -> Result<(StatusCode, Json<Charge>), ApiError> {
    let reference = idempotency.downstream_key("card-network");
    order.authorise(&app, &reference, idempotency.attempt()).await?;
    let id = app.ledger.enter_once(order.entry(&user, &idempotency, &reference)).await?;
    Ok((StatusCode::CREATED, Json(order.charged(id, idempotency.attempt()))))
}

impl NewCharge {
    /// Takes the money.
    pub(super) async fn authorise(&self, app: &App, reference: &str, attempt: u32) -> Result<(), ApiError> {
        if self.amount <= 0 {
            return Err(ApiError::InvalidAmount);
        }
        if self.currency.len() != 3 || !self.currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Err(ApiError::InvalidCurrency);
        }
        tracing::info!(amount = self.amount, attempt, "asking the card network");
        if app.move_money(reference, self.amount, &self.currency).await? { Ok(()) } else { Err(ApiError::Declined) }
    }

    pub(super) fn entry<'a>(
        &'a self,
        user: &'a User,
        idempotency: &'a Idempotency,
        reference: &'a str,
    ) -> NewEntry<'a> {
        NewEntry {
            kind: "charge",
            user: &user.name,
            amount: self.amount,
            currency: Some(&self.currency),
            charge: None,
            key: idempotency.key(),
            attempt: idempotency.attempt(),
            reference,
        }
    }

    pub(super) fn charged(self, id: i64, attempt: u32) -> Charge {
        let Self { amount, currency, card } = self;
        Charge { id, amount, currency, card, attempt }
    }
}
