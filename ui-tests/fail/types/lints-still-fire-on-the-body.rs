#![deny(unused_must_use, unused_mut, unused_variables)]

use idempotent_runtime::idempotent;

#[idempotent]
async fn create_charge(mut body: String, unused: axum::http::Uri, last: String) {
    let left_over = 1;
    std::fs::remove_file("x");
    drop(body);
}

fn main() {
    let _ = create_charge;
}
