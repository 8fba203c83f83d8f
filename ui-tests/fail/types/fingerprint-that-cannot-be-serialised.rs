use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use idempotent_runtime::idempotent;

struct Order(u64);

impl<S: Sync> FromRequestParts<S> for Order {
    type Rejection = ();

    async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, ()> {
        Ok(Self(5))
    }
}

#[idempotent(fingerprint = (&order, 1))]
async fn create_charge(order: Order) -> String {
    order.0.to_string()
}

fn main() {}
