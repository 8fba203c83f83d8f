//! An argument's lints go to its pattern, and an argument may be compiled out.

#![deny(warnings)]

use axum::Router;
use axum::http::{HeaderMap, Method};
use axum::routing::post;
use idempotent_runtime::idempotent;

#[idempotent]
async fn lints(
    #[allow(unused_variables)] headers: HeaderMap,
    #[expect(unused_variables)] method: Method,
    #[allow(unused_mut)] mut body: String,
) -> String {
    body
}

#[idempotent(caller = method)]
async fn conditional(#[cfg(any())] gone: NoSuchType, #[cfg(all())] method: Method, body: String) -> String {
    format!("{method} {body}")
}

fn main() {
    let _: Router = Router::new().route("/lints", post(lints)).route("/conditional", post(conditional));
}
