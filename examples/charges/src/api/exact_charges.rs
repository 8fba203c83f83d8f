//! Charges on a store in the ledger's own database: exactly once.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use idempotent_runtime::{Idempotency, Tx, idempotent};

use super::App;
use super::charges::{Charge, NewCharge};
use crate::error::ApiError;
use crate::ledger::LedgerDatabase;
use crate::user::User;

/// Charges a card: **exactly once**, as far as the ledger goes.
///
/// The entry and the record of the response commit in one transaction, before the response is sent. A process that dies
/// in here leaves neither, and no lease: a retry runs the handler again at once. So the `INSERT` need not recognise what
/// an earlier attempt has written. The card network is another company's, which no transaction of ours reaches: it may
/// be asked again, with the same reference.
///
/// A program with one database writes `Tx<Postgres>` in place of `Tx<DB>`, and `install` checks that the store is on it.
/// With `Tx<Sqlite>` the handler holds SQLite's only write lock, also while the card network works: charges run
/// one after another. That suits a service with few charges at a time; others want PostgreSQL.
// Line for line as in `charges.rs`, apart from the ledger: no more changes with the guarantee.
#[idempotent(scope = "charges", shared_scope, ttl = "24h", cache = [201, 402], caller = user.name)]
pub(super) async fn create_charge<DB: LedgerDatabase>(
    State(app): State<App>,
    mut tx: Tx<DB>,
    user: User,
    idempotency: Idempotency,
    Json(order): Json<NewCharge>,
) -> Result<(StatusCode, Json<Charge>), ApiError> {
    let reference = idempotency.downstream_key("card-network");
    order.authorise(&app, &reference, idempotency.attempt()).await?;
    let id = DB::enter(&mut tx, order.entry(&user, &idempotency, &reference)).await?;
    Ok((StatusCode::CREATED, Json(order.charged(id, idempotency.attempt()))))
}
