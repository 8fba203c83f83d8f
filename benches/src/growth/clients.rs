//! From one request in flight to sixteen thousand: the guarded handler beside the bare one.

use std::time::Duration;

use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};

use super::Scale;
use super::child::{Task, outcome};
use crate::charge::{CHARGES, Order, Receipt, charge};
use crate::engines::contest::{Effort, Outcome, Side, charges, contest};
use crate::report::{Section, Table, figure};

const CLIENTS: [usize; 5] = [1, 16, 256, 4_096, 16_384];

const ROUNDS: usize = 5;

async fn bare(Json(order): Json<Order>) -> (StatusCode, Json<Receipt>) {
    // Lets the other requests run meanwhile, so that all handlers run and all keys are claimed at the same time.
    tokio::task::yield_now().await;
    charge(order)
}

#[idempotent(scope = "growth")]
async fn guarded(Json(order): Json<Order>) -> (StatusCode, Json<Receipt>) {
    tokio::task::yield_now().await;
    charge(order)
}

/// Requests per second: guarded, bare, and the median of the rounds' quotients.
pub(super) async fn rates(clients: usize, seconds: f64) -> (f64, f64, f64) {
    let store = MemoryStore::builder().max_bytes(usize::MAX).build();
    // By default, fewer handlers run at the same time.
    let registry = Registry::builder(store).max_running(clients).max_running_per_scope(clients).build();
    let guarded = Router::new().route(CHARGES, post(guarded)).layer(registry.layer());
    let (guarded, bare) = (charges(guarded), charges(Router::new().route(CHARGES, post(bare))));
    let effort = Effort { rounds: ROUNDS, round: Duration::from_secs_f64(seconds) };
    let (guarded, bare) = (Side::new(clients, guarded), Side::new(clients, bare));
    let Outcome { ours, bare, ratio } = contest(&format!("{clients} clients"), effort, &guarded, &bare).await;
    (ours, bare, ratio)
}

/// All numbers of clients, each in a separate process.
pub(super) fn measure(section: &mut Section, scale: Scale) -> anyhow::Result<()> {
    let seconds = scale.seconds(0.5);
    let mut table = Table::new(
        &format!("Requests per second of so many clients at once: medians of {ROUNDS} alternating rounds"),
        &["clients", "guarded", "bare", "ratio"],
    );
    for clients in CLIENTS {
        let (guarded, bare, ratio): (f64, f64, f64) = outcome(&Task::Clients { clients, seconds })?;
        table.row([clients.to_string(), figure(guarded, ""), figure(bare, ""), figure(ratio, "")]);
    }
    section.tables.push(table);
    section.text.push(
        "The clients are tasks. Each sends one request after another, with a fresh key and 200 bytes of JSON, through an axum \
         router in process. Before it answers, the handler lets all other tasks run, so there are as many claimed keys at a \
         time as clients. The bare handler does nothing else, so no real handler has a lower ratio."
            .to_owned(),
    );
    Ok(())
}
