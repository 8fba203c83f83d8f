//! Webhooks of the card network: at least once, under a key of the sender's.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use idempotent_runtime::{Idempotency, idempotent};
use serde::Deserialize;
use utoipa::ToSchema;

use super::App;
use super::document::BodyErrors;
use crate::error::ApiError;
use crate::ledger::NewEntry;

#[derive(Deserialize, ToSchema)]
pub(super) struct NetworkEvent {
    /// Unique to the event; 1 to 255 characters of printable ASCII.
    #[schema(min_length = 1, max_length = 255, pattern = "^[!-~]+$")]
    id: String,
    charge: i64,
    kind: String,
}

/// Takes an event: **at least once**, and once in effect, since the ledger enters a reference once.
///
/// The card network repeats an event until it sees a 2xx, and sends no header of ours: the key is the event's own id.
/// A real service would verify the network's signature, in an extractor in place of `Json`: an extractor runs before the
/// event's id is claimed, so that a forged event cannot take it. The guide's page on keys shows one.
#[utoipa::path(
    post,
    path = "/network-events",
    summary = "Takes an event of the card network",
    description = "The network repeats it until it sees this answer.",
    security(()),
    responses((status = 204, description = "The event is in the ledger"), BodyErrors),
)]
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
