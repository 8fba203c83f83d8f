use axum::Json;
use idempotent_runtime::idempotent;

#[idempotent(key = id)]
async fn create_charge(Json(id): Json<u64>) -> String {
    id.to_string()
}

#[idempotent(key = id)]
async fn refund(Json(id): Json<Option<u64>>) -> String {
    format!("{id:?}")
}

fn main() {}
