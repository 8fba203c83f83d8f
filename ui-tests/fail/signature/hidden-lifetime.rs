use std::borrow::Cow;

use axum::extract::Extension;
use idempotent_runtime::idempotent;

#[idempotent]
async fn create_charge(name: Extension<Cow<str>>, body: String) -> String {
    name.0.into_owned() + &body
}

fn main() {}
