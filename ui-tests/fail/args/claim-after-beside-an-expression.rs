use axum::extract::{Path, State};
use axum::http::response;
use idempotent_runtime::idempotent;

#[idempotent(claim_after = app, key = format!("{id}"), caller = user.len(), fingerprint = only((app, &order)))]
async fn create_charge(State(app): State<u32>, Path((user, id)): Path<(String, u32)>, order: String) {
    drop((app, user, id, order));
}

#[idempotent(claim_after = none, cache_if = is_final)]
async fn create_refund(State(is_final): State<fn(&response::Parts) -> bool>) {
    let _ = is_final;
}

fn main() {}
