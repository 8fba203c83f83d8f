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

#[idempotent(caller = method)]
async fn conditional_attributes(
    #[cfg_attr(all(), cfg(any()))] gone: NoSuchType,
    #[cfg_attr(all(), cfg_attr(all(), cfg(any()), allow(unused_mut)))] mut gone_too: NoSuchType,
    #[cfg_attr(any(), cfg(any()))] method: Method,
    #[cfg_attr(all(), cfg(all()), expect(unused_variables))] headers: HeaderMap,
    #[cfg_attr(all(), allow(unused_mut))] mut body: String,
) -> String {
    format!("{method} {body}")
}

fn main() {
    let _: Router = Router::new()
        .route("/lints", post(lints))
        .route("/conditional", post(conditional))
        .route("/attributes", post(conditional_attributes));
}
