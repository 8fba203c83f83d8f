use axum::extract::{Path, State};
use idempotent_runtime::idempotent;

#[idempotent(claim_after = usr)]
async fn misspelled(State(app): State<()>, Path((user, id)): Path<(String, u32)>, body: String) {
    drop((app, user, id, body));
}

#[idempotent(claim_after = user)]
async fn without_names(_: State<()>, _: String) {}

#[idempotent(claim_after = user)]
async fn without_arguments() {}

fn main() {}
