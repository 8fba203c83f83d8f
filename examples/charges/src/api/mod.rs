//! The routes. Each guarantee has one handler: `charges`, `exact_charges`, `refunds`, `events`.

pub mod charges;
mod document;
mod events;
mod exact_charges;
mod refunds;

use axum::extract::{Path, State};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use sqlx::{Postgres, Sqlite};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use self::document::Document;
use crate::error::{ApiError, ErrorBody};
use crate::ledger::{Entry, Ledger};
use crate::network::{CardNetwork, NetworkCharge};
use crate::signature::NetworkSecret;
use crate::user::User;

/// The state that the handlers share.
#[derive(Clone)]
pub struct App {
    /// The service's own books.
    pub ledger: Ledger,
    /// The card network, which is another company.
    pub network: CardNetwork,
    /// The secret with which the card network signs its events.
    pub network_secret: NetworkSecret,
}

impl App {
    /// Moves money, once for each reference. Returns false if the card was declined.
    ///
    /// Compares the network's answer with the request. If the network has moved another amount under this reference,
    /// entering the requested amount would make the ledger wrong.
    async fn move_money(&self, reference: &str, amount: i64, currency: &str) -> Result<bool, ApiError> {
        let charge = self.network.authorise(reference, amount, currency).await?;
        let is_ours = charge.amount == amount && charge.currency == currency;
        if is_ours { Ok(charge.approved) } else { Err(ApiError::OtherCharge) }
    }
}

/// The database of the handlers' transactions.
#[derive(Clone, Copy)]
pub enum Transactions {
    /// The store's SQLite database, which contains the ledger too: the charge and its record commit together.
    Sqlite,
    /// The store's PostgreSQL database, which contains the ledger too.
    Postgres,
    /// The store has no transactions.
    None,
}

/// The routes, with their document and a page that shows it. They run under the registry that the router gets as a
/// layer, or that the program has installed.
pub fn router(app: App, transactions: Transactions) -> Router {
    let (schemas, paths, at_least_once) = routes!(charges::create_charge);
    let create_charge: MethodRouter<App> = match transactions {
        Transactions::Sqlite => post(exact_charges::create_charge::<Sqlite>),
        Transactions::Postgres => post(exact_charges::create_charge::<Postgres>),
        Transactions::None => at_least_once,
    };
    let (routes, document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes((schemas, paths, create_charge))
        .routes(routes!(show_charge))
        .routes(routes!(refunds::create_refund))
        .routes(routes!(events::receive_network_event))
        // These are not part of the API: they show what the handlers did.
        .route("/ledger", get(show_ledger))
        .route("/network", get(show_network))
        .split_for_parts();
    routes.merge(SwaggerUi::new("/docs").url("/openapi.json", document)).with_state(app)
}

/// Shows a charge
#[utoipa::path(
    get,
    path = "/charges/{id}",
    security(("name" = [])),
    params(("id" = i64, Path, description = "The charge")),
    responses(
        (status = 200, body = Entry, description = "The charge, and what is left of it"),
        (status = 400, body = String, content_type = "text/plain", description = "The id is no number"),
        (status = 401, body = ErrorBody, description = "The request names no user"),
        (status = 404, body = ErrorBody, description = "The charge is not there, or another user's"),
    ),
)]
async fn show_charge(State(app): State<App>, user: User, Path(id): Path<i64>) -> Result<Json<Entry>, ApiError> {
    app.ledger.charge(id, &user.name).await.map(Json)
}

async fn show_ledger(State(app): State<App>) -> Result<Json<Vec<Entry>>, ApiError> {
    Ok(Json(app.ledger.entries().await?))
}

/// The books of the card network. A real service could not show them; here they prove how often a card was charged.
async fn show_network(State(app): State<App>) -> Result<Json<Vec<NetworkCharge>>, ApiError> {
    Ok(Json(app.network.books().await?))
}
