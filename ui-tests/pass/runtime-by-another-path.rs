//! A crate that gets the runtime through the re-export of another crate.

#![deny(warnings)]

mod facade {
    pub use idempotent_runtime as idem;
}

use axum::Router;
use axum::routing::post;
use facade::idem::idempotent;

mod nested {
    /// A path from the root of the crate, and every kind of argument.
    #[super::idempotent(
        scope = "charges",
        cache = [201],
        methods = any,
        key = &body,
        caller = "one",
        fingerprint = &body,
        in_flight = wait("5s"),
        after_crash = "reject",
        on_store_error = "run",
        oversize = "rerun",
        invalid_key = "ignore",
        crate = "crate::facade::idem",
    )]
    pub async fn create_charge(body: String) -> String {
        body
    }
}

#[idempotent(crate = "facade::idem")]
async fn by_a_relative_path() -> impl axum::response::IntoResponse {}

#[idempotent(crate = "::idempotent_runtime")]
async fn by_its_own_name() {}

#[axum::debug_handler]
#[idempotent(crate = "facade::idem")]
async fn beneath_another_macro(_body: String) {}

#[idempotent(crate = "facade::idem")]
#[axum::debug_handler]
async fn above_another_macro(_body: String) {}

#[idempotent(crate = "facade::idem")]
#[utoipa::path(post, path = "/", responses((status = 200)))]
async fn documented() {}

fn main() {
    let _: Router = Router::new()
        .route("/nested", post(nested::create_charge))
        .route("/relative", post(by_a_relative_path))
        .route("/own", post(by_its_own_name))
        .route("/beneath", post(beneath_another_macro))
        .route("/above", post(above_another_macro))
        .route("/documented", post(documented));
    assert_eq!(idempotent_runtime::policies().count(), 6);
}
