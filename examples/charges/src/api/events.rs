//! Webhooks of the card network, which signs them: at least once. The key is the id that the network gives the event.

use axum::extract::State;
use axum::http::StatusCode;
use idempotent_runtime::{Idempotency, idempotent};
use serde::Deserialize;
use utoipa::ToSchema;

use super::App;
use super::document::BodyErrors;
use crate::error::ApiError;
use crate::ledger::NewEntry;
use crate::signature::Signed;

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
/// The card network repeats an event until it sees a 2xx. It sends no `Idempotency-Key`: the key is the event's own id.
/// [`Signed`] verifies the signature before the id is claimed.
// Each operation is described by itself, so two descriptions look alike.
#[utoipa::path(
    post,
    path = "/network-events",
    summary = "Takes an event of the card network",
    description = "The network repeats it until it sees this answer.",
    security(("signature" = [])),
    request_body = NetworkEvent,
    responses((status = 204, description = "The event is in the ledger"), BodyErrors),
)]
#[idempotent(scope = "network-events", ttl = "30d", key = event.id, fingerprint = none)]
pub(super) async fn receive_network_event(
    State(app): State<App>,
    idempotency: Idempotency,
    Signed(event): Signed<NetworkEvent>,
) -> Result<StatusCode, ApiError> {
    let entry = NewEntry {
        kind: &event.kind,
        user: "card network",
        amount: 0,
        currency: None,
        charge: Some(event.charge),
        key: idempotency.key(),
        attempt: idempotency.attempt(),
        reference: &idempotency.downstream_key("ledger"),
    };
    app.ledger.enter_once(entry).await?;
    Ok(StatusCode::NO_CONTENT)
}
