//! The routes. Each guarantee has one handler: `charges`, `exact_charges`, `refunds`, `events`.

pub mod charges;
mod events;
mod exact_charges;
mod refunds;

use axum::extract::{Path, State};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use sqlx::{Postgres, Sqlite};

use crate::error::ApiError;
use crate::ledger::{Entry, Ledger};
use crate::network::{CardNetwork, NetworkCharge};
use crate::user::User;

/// What the handlers share.
#[derive(Clone)]
pub struct App {
    /// Our own books.
    pub ledger: Ledger,
    /// The other company.
    pub network: CardNetwork,
}

/// Which database the handlers' transactions are of.
#[derive(Clone, Copy)]
pub enum Transactions {
    /// The store's, where the ledger lies too: the charge and its record commit together.
    Sqlite,
    /// The same.
    Postgres,
    /// The store has none.
    None,
}

/// The routes, under whatever registry the router is given or the program has installed.
pub fn router(app: App, transactions: Transactions) -> Router {
    let create_charge: MethodRouter<App> = match transactions {
        Transactions::Sqlite => post(exact_charges::create_charge::<Sqlite>),
        Transactions::Postgres => post(exact_charges::create_charge::<Postgres>),
        Transactions::None => post(charges::create_charge),
    };
    Router::new()
        .route("/charges", create_charge)
        .route("/charges/{id}", get(show_charge))
        .route("/refunds", post(refunds::create_refund))
        .route("/network-events", post(events::receive_network_event))
        .route("/ledger", get(show_ledger))
        .route("/network", get(show_network))
        .with_state(app)
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
