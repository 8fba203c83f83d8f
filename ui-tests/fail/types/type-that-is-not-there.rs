use idempotent_runtime::idempotent;

#[idempotent]
async fn create_charge(order: Order) {
    drop(order);
}

#[idempotent(claim_after = method)]
async fn create_refund(method: axum::http::Method, user: User, order: Order) {
    drop((method, user, order));
}

fn main() {}
