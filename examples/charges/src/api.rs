//! The routes, and three handlers with three policies.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use idempotent_runtime::{Idempotency, idempotent};
use serde::{Deserialize, Serialize};

use crate::error::ApiError;
use crate::ledger::{Entry, Ledger, NewEntry};
use crate::network::{CardNetwork, NetworkCharge};
use crate::user::User;

#[derive(Clone)]
pub(crate) struct App {
    pub(crate) ledger: Ledger,
    pub(crate) network: CardNetwork,
}

pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/charges", post(create_charge))
        .route("/charges/{id}", get(show_charge))
        .route("/refunds", post(create_refund))
        .route("/network-events", post(receive_network_event))
        .route("/ledger", get(show_ledger))
        .route("/network", get(show_network))
        .with_state(app)
}

#[derive(Deserialize)]
struct NewCharge {
    amount: i64,
    currency: String,
    card: String,
}

#[derive(Serialize)]
struct Charge {
    id: i64,
    amount: i64,
    currency: String,
    card: String,
    attempt: u32,
}

/// Charges a card: at least once after a crash, and once in effect, since the card network and the ledger recognise the
/// reference of a repeated attempt. A declined card is final too.
#[idempotent(scope = "charges", ttl = "24h", cache = [201, 402], caller = user.name, lease = "3s")]
async fn create_charge(
    State(app): State<App>,
    user: User,
    idempotency: Idempotency,
    Json(order): Json<NewCharge>,
) -> Result<(StatusCode, Json<Charge>), ApiError> {
    if order.amount <= 0 {
        return Err(ApiError::InvalidAmount);
    }
    let reference = idempotency.downstream_key("card-network");
    let attempt = idempotency.attempt();
    tracing::info!(amount = order.amount, attempt, "asking the card network");
    if !app.network.authorise(&reference, order.amount).await? {
        return Err(ApiError::Declined);
    }
    let entry = NewEntry {
        kind: "charge",
        user: &user.name,
        amount: order.amount,
        charge: None,
        key: idempotency.key(),
        attempt,
        reference: &reference,
    };
    let id = app.ledger.enter(entry).await?;
    let NewCharge { amount, currency, card } = order;
    Ok((StatusCode::CREATED, Json(Charge { id, amount, currency, card, attempt })))
}

#[derive(Deserialize)]
struct NewRefund {
    charge: i64,
    amount: i64,
}

#[derive(Serialize)]
struct Refund {
    id: i64,
    charge: i64,
    amount: i64,
}

/// Gives money back: at most once. A key is required, a double click waits for the first one's response, and after a
/// crash nobody runs it again: a person looks at the ledger.
#[idempotent(
    scope = "refunds",
    ttl = "7d",
    required,
    caller = user.name,
    fingerprint = (refund.charge, refund.amount),
    in_flight = wait("5s"),
    lease = "3s",
    after_crash = "refuse",
)]
async fn create_refund(
    State(app): State<App>,
    user: User,
    idempotency: Idempotency,
    Json(refund): Json<NewRefund>,
) -> Result<(StatusCode, Json<Refund>), ApiError> {
    let NewRefund { charge, amount } = refund;
    if amount <= 0 {
        return Err(ApiError::InvalidAmount);
    }
    app.ledger.charge(charge, &user.name).await?;
    let left = app.ledger.left_of(charge).await?;
    if amount > left {
        return Err(ApiError::RefundTooLarge { left });
    }
    let reference = idempotency.downstream_key("card-network");
    app.network.authorise(&reference, -amount).await?;
    let entry = NewEntry {
        kind: "refund",
        user: &user.name,
        amount: -amount,
        charge: Some(charge),
        key: idempotency.key(),
        attempt: idempotency.attempt(),
        reference: &reference,
    };
    let id = app.ledger.enter(entry).await?;
    Ok((StatusCode::CREATED, Json(Refund { id, charge, amount })))
}

#[derive(Deserialize)]
struct NetworkEvent {
    id: String,
    charge: i64,
    kind: String,
}

/// Takes an event of the card network, which repeats it until it sees a 2xx: the key is the event's own id.
#[idempotent(scope = "network-events", ttl = "30d", key = event.id, fingerprint = none)]
async fn receive_network_event(
    State(app): State<App>,
    idempotency: Idempotency,
    Json(event): Json<NetworkEvent>,
) -> Result<StatusCode, ApiError> {
    let entry = NewEntry {
        kind: &event.kind,
        user: "card network",
        amount: 0,
        charge: Some(event.charge),
        key: idempotency.key(),
        attempt: idempotency.attempt(),
        reference: &idempotency.downstream_key("ledger"),
    };
    app.ledger.enter(entry).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn show_charge(State(app): State<App>, user: User, Path(id): Path<i64>) -> Result<Json<Entry>, ApiError> {
    app.ledger.charge(id, &user.name).await.map(Json)
}

async fn show_ledger(State(app): State<App>) -> Result<Json<Vec<Entry>>, ApiError> {
    Ok(Json(app.ledger.entries().await?))
}

/// The other company's books, which a real service could not show: here they prove what a card was charged.
async fn show_network(State(app): State<App>) -> Result<Json<Vec<NetworkCharge>>, ApiError> {
    Ok(Json(app.network.books().await?))
}
