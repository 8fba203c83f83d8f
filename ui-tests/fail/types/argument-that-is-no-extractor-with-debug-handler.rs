use idempotent_runtime::idempotent;

struct Order;

#[axum::debug_handler]
#[idempotent]
async fn first(order: Order, body: String) {
    let _ = (order, body);
}

#[idempotent]
#[axum::debug_handler]
async fn last(order: Order) {
    let _ = order;
}

fn main() {}
