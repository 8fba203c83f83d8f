use axum::extract::Path;
use axum::handler::Handler;
use idempotent_runtime::idempotent;

#[idempotent]
async fn create_charge(body: String, id: Path<u32>) {
    let _ = (body, id);
}

/// As `axum::routing::post`, whose own lines the compiler would quote.
fn post<H: Handler<T, ()>, T: 'static>(_: H) {}

fn main() {
    post(create_charge);
}
