//! The expansion does not allow these lints, because `allow` under `forbid` is an error.

#![forbid(
    dead_code,
    non_camel_case_types,
    non_snake_case,
    unreachable_code,
    unreachable_patterns,
    unused_braces,
    unused_imports,
    unused_must_use,
    unused_mut,
    unused_variables
)]
#![deny(warnings)]

use std::convert::Infallible;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Sse, sse};
use futures_util::{Stream, stream};
use idempotent_runtime::idempotent;

/// Each kind of expression and argument.
#[idempotent(key = token, caller = id, fingerprint = (&body, id), cache_if = is_final)]
pub async fn expressions(
    State(token): State<String>,
    Path(id): Path<u64>,
    _unused: axum::http::Method,
    mut body: String,
) -> Result<String, StatusCode> {
    body.push('!');
    if id == 0 { Err(StatusCode::BAD_REQUEST) } else { Ok(format!("{token} {id} {body}")) }
}

fn is_final(parts: &axum::http::response::Parts) -> bool {
    parts.status.is_success()
}

/// Several arguments after the claim.
#[idempotent(claim_after = none)]
pub async fn after_the_claim(State(token): State<String>, Path(_id): Path<u64>, mut body: String) -> String {
    body.push_str(&token);
    body
}

/// No arguments and no return type.
#[idempotent]
pub async fn nothing() {}

/// A return type without values.
#[idempotent]
pub async fn never_returns(_body: String) -> Infallible {
    std::future::pending().await
}

/// A return type that the body determines.
#[idempotent]
pub async fn opaque() -> impl IntoResponse {
    StatusCode::CREATED
}

/// A return type whose error type is inferred.
#[idempotent]
pub async fn events() -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
    Sse::new(stream::iter([Ok(sse::Event::default())]))
}

/// A generic handler.
#[idempotent]
pub async fn generic<T: serde::de::DeserializeOwned + Send + 'static>(Json(_value): Json<T>) -> &'static str {
    "read"
}

fn main() {
    let _: axum::Router = axum::Router::new()
        .route("/{id}", axum::routing::post(expressions).with_state(String::new()))
        .route("/after/{id}", axum::routing::post(after_the_claim).with_state(String::new()))
        .route("/nothing", axum::routing::post(nothing))
        .route("/never", axum::routing::post(never_returns))
        .route("/opaque", axum::routing::post(opaque))
        .route("/events", axum::routing::post(events))
        .route("/generic", axum::routing::post(generic::<u8>));
}
