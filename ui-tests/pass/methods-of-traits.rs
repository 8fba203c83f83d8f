//! A method of a trait: a provided method, and a method of an implementation.

#![deny(warnings)]

use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use idempotent_runtime::{Guarded, idempotent};
use serde::de::DeserializeOwned;

trait Resource: DeserializeOwned + Send + Sync + 'static {
    #[idempotent]
    async fn create(Json(resource): Json<Self>) -> StatusCode {
        drop(resource);
        StatusCode::CREATED
    }
}

impl Resource for u32 {}

trait Api {
    async fn echo(body: Guarded<String>) -> Response;
}

struct Server;

impl Api for Server {
    #[idempotent]
    async fn echo(body: String) -> String {
        body
    }
}

fn main() {
    let _: Router = Router::new().route("/", post(<u32 as Resource>::create).put(Server::echo));
}
