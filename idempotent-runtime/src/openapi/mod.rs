//! What an annotated handler says of itself in an OpenAPI document (features `utoipa`, `aide`).
//!
//! - **The header of the key**, with its name, at most 255 characters, and required if the policy says so. A policy with
//!   `key = expr` has none.
//! - **The rejections** that this policy can answer with, by status, with the schema of [`Rejection`](crate::Rejection) and the
//!   `code`s that may come; `Retry-After` where it is sent. The schema stands in each response and is called
//!   `IdempotencyProblem`: it names the codes of that status alone.
//! - **`idempotent-replayed`** on every response whose status is recorded.
//! - **`x-idempotency`**, an extension of the operation:
//!
//! | member | |
//! |---|---|
//! | `scope` | the namespace of the keys |
//! | `ttl`, `ttl_seconds` | how long a record is kept: `"24h"`, `86400` |
//! | `statuses` | what is recorded: numbers, classes `"2XX"` and ranges `"200-204"`; or the word `"all"` or `"cache_if"` |
//! | `required`, `header` | whether a key is required, and where it is; no `header` with `key = expr` |
//! | `in_flight` | `"reject"`, or `"wait 5s"` |
//! | `after_crash` | `"rerun"` or `"reject"` |
//!
//! # What you document stays
//!
//! A parameter, a response, a header or an extension of yours is kept as it is, and added to where something is missing: a
//! 409 of your own gets the problem's media type beside yours, or keeps its `application/problem+json` if you described
//! that. A response that is a `$ref` is left alone, since it is others' too. What you said of `4XX` or `default` is said
//! of each rejection as well, which would hide it otherwise. Requests, responses and their schemas are what the framework
//! sees without us.
//!
//! A registry that is [installed](crate::install) before the document is made has its say: where it [renders
//! rejections](crate::RegistryBuilder::render_rejections) itself, their schema is left out, since only you know it, and where it
//! limits callers, there is a 429. A registry in a [layer](crate::Registry::layer) is not known to the document.
//!
//! # utoipa
//!
//! `#[utoipa::path]` of utoipa 6 may stand above or below. Both `routes!` of utoipa-axum and `#[openapi(paths(…))]` give the
//! whole operation; no further call is needed. Methods that the policy leaves alone are documented as they are.
//!
//! A handler inside of another function's body is not seen, nor is one with `impl_for`: put it into a module.
//!
#![cfg_attr(feature = "utoipa", doc = "```")]
#![cfg_attr(not(feature = "utoipa"), doc = "```ignore")]
//! use axum::http::StatusCode;
//! use idempotent_runtime::idempotent;
//! use utoipa::OpenApi;
//!
//! #[utoipa::path(post, path = "/charges", responses((status = 201, body = String)))]
//! #[idempotent(scope = "charges", cache = [201, 409], required)]
//! async fn create_charge(order: String) -> (StatusCode, String) {
//!     (StatusCode::CREATED, format!("charged for {order}"))
//! }
//!
//! #[derive(OpenApi)]
//! #[openapi(paths(create_charge))]
//! struct Document;
//!
//! fn main() {
//!     let document = serde_json::to_value(Document::openapi()).unwrap();
//!     let operation = &document["paths"]["/charges"]["post"];
//!     assert_eq!(operation["parameters"][0]["name"], "idempotency-key");
//!     assert_eq!(operation["x-idempotency"]["statuses"], serde_json::json!([201, 409]));
//!     let rejections = &operation["responses"]["400"]["content"]["application/problem+json"]["schema"];
//!     assert_eq!(rejections["properties"]["code"]["enum"], serde_json::json!(["missing_key", "invalid_key"]));
//! }
//! ```
//!
//! # aide
//!
//! A handler in `api_route` of aide 0.15 documents itself as soon as its arguments and its return type are aide's
//! `OperationInput` and `OperationOutput`, as without us. aide tells a handler nothing of its method: one that is routed for
//! a method that its policy leaves alone is documented as if it were guarded. A handler's `…_with` transform comes last and
//! replaces what stands under a status; `complete`, given to `finish_api_with`, marks the recorded ones among its responses
//! too. With `aide::generate::infer_responses(false)` the rejections are not documented either.

#[cfg(feature = "aide")]
pub(crate) mod aide;
pub(crate) mod description;
pub(crate) mod recorded;
#[cfg(feature = "utoipa")]
pub(crate) mod utoipa;

#[cfg(feature = "aide")]
pub use crate::openapi::aide::complete;
#[cfg(feature = "aide")]
#[doc(hidden)]
pub use crate::openapi::aide::{Documented, identity};
#[cfg(feature = "utoipa")]
#[doc(hidden)]
pub use crate::openapi::utoipa::operation;
