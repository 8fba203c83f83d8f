//! A value that an expression of the policy returns is coerced to the declared type, as in the handler's first
//! statement.

use axum::Router;
use axum::http::HeaderMap;
use axum::routing::post;
use idempotent_runtime::idempotent;

fn user(headers: &HeaderMap) -> Option<u32> {
    headers.get("x-user")?.to_str().ok()?.parse().ok()
}

#[idempotent(caller = match user(&headers) { Some(user) => user, None => return b"who?" })]
async fn charge(headers: HeaderMap) -> &'static [u8] {
    drop(headers);
    b"charged"
}

#[idempotent]
async fn in_the_body(headers: HeaderMap) -> &'static [u8] {
    let _user = match user(&headers) {
        Some(user) => user,
        None => return b"who?",
    };
    b"charged"
}

fn main() {
    let _: Router = Router::new().route("/", post(charge).put(in_the_body));
}
