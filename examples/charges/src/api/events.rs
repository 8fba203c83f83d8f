//! Webhooks of the card network: at least once, under a key of the sender's.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use idempotent_runtime::{Idempotency, idempotent};
use serde::Deserialize;

use super::App;
use crate::error::ApiError;
use crate::ledger::NewEntry;

#[derive(Deserialize)]
pub(super) struct NetworkEvent {
    id: String,
    charge: i64,
    kind: String,
}

/// Takes an event: **at least once**, and once in effect, since the ledger enters a reference once.
///
/// The card network repeats an event until it sees a 2xx, and sends no header of ours: the key is the event's own id.
#[idempotent(scope = "network-events", ttl = "30d", key = event.id, fingerprint = none)]
pub(super) async fn receive_network_event(
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
    app.ledger.enter_once(entry).await?;
    Ok(StatusCode::NO_CONTENT)
}
