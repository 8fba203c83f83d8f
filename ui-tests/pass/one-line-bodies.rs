//! A body of one expression on one line keeps its braces.

#![deny(warnings)]

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::idempotent;

#[idempotent]
async fn echo(body: String) -> String { body }

#[idempotent]
async fn created() -> StatusCode { StatusCode::CREATED }

#[idempotent]
async fn nothing(_: String) {}

#[idempotent]
async fn early(body: String) -> Result<String, StatusCode> { return Ok(body); }

#[idempotent]
async fn with_inner_attributes(body: String) -> String { #![allow(unused_braces)] { body } }

fn main() {
    let _: Router = Router::new()
        .route("/echo", post(echo))
        .route("/created", post(created))
        .route("/nothing", post(nothing))
        .route("/early", post(early))
        .route("/inner", post(with_inner_attributes));
}
