use axum::Router;
use axum::routing::post;
use idempotent_runtime::idempotent;

struct Order;

#[idempotent]
async fn create_charge(order: Order, body: String) {
    let _ = (order, body);
}

fn main() {
    let _: Router = Router::new().route("/", post(create_charge));
}
