use axum::Json;
use idempotent_runtime::idempotent;

#[idempotent(fingerprint = (&order.0, order.1))]
async fn create_charge(Json(order): Json<(String, f64)>) -> String {
    order.0
}

fn main() {}
