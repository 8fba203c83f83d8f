#![deny(dead_code)]

use idempotent_runtime::idempotent;

#[idempotent]
async fn create_charge(body: String) -> String {
    body
}

fn main() {}
