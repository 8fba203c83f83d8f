use axum::handler::Handler;
use idempotent_runtime::idempotent;

struct Order;

#[idempotent]
async fn create_charge(order: Order, body: String) {
    let _ = (order, body);
}

/// As `axum::routing::post`, whose own lines the compiler would quote.
fn post<H: Handler<T, ()>, T: 'static>(_: H) {}

fn main() {
    post(create_charge);
}
