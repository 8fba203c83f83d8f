//! What an annotated handler adds to an OpenAPI document (features `utoipa`, `aide`).
//!
//! - **The header of the key**: its name, at most 255 characters without its quotes, required if the policy says so. A
//!   policy with `key = expr` has no such header.
//! - **The rejections** of this policy, by status, with the schema of [`Rejection`](crate::Rejection), the possible
//!   `code`s, and `Retry-After` if it is sent. `step_failed` (500) is among them for every handler without a `Tx`,
//!   because a policy does not say whether its handler takes steps. The schema is called `IdempotencyProblem`. With
//!   aide it is one component of the document, to which each response refers with the codes of its status. With utoipa
//!   it is in each response, unless the document has the modifier `ProblemComponent`.
//! - **`idempotent-replayed`** on every response whose status is recorded.
//! - **`x-idempotency`**, an extension of the operation:
//!
//! | member | |
//! |---|---|
//! | `scope` | the namespace of the keys |
//! | `ttl`, `ttl_seconds` | how long a record is kept: `"24h"`, `86400` |
//! | `statuses` | what is recorded: numbers, classes `"2XX"` and ranges `"200-204"`; or the word `"all"` or `"cache_if"` |
//! | `methods` | the methods that are guarded, if the operation describes others too |
//! | `required`, `header` | whether a key is required, and where it is; no `header` with `key = expr` |
//! | `in_flight` | `"reject"`, or `"wait 5s"` |
//! | `after_crash` | `"rerun"` or `"reject"` |
//!
//! # What you document stays
//!
//! Your own parameters, responses, headers and extensions stay as they are. Only missing parts are added: your own 409
//! gets the problem's media type beside yours, or keeps its `application/problem+json` if you described one. A response
//! that is a `$ref` is not changed, because other operations use it too. Your response for `4XX` or `default` is added
//! to each rejection, because the rejection would hide it otherwise. Requests, responses and their schemas are what the
//! framework sees without this crate.
//!
//! If a registry is [installed](crate::install) before the document is made, the document depends on it. If the
//! registry [renders rejections](crate::RegistryBuilder::render_rejections), their schema is left out, because only you
//! know it. If the registry limits callers, there is a 429. The document does not know a registry in a
//! [layer](crate::Registry::layer).
//!
//! # utoipa
//!
//! `#[utoipa::path]` of utoipa 6 can be above or below `#[idempotent]`. Both `routes!` of utoipa-axum and
//! `#[openapi(paths(…))]` produce the whole operation without a further call. An operation whose methods the policy
//! does not guard has no additions. utoipa has one operation for all of `method(get, post)`: there, the key is
//! optional, and its description, those of the rejections and `x-idempotency` name the guarded methods. A response
//! without a description gets the description of its status, because OpenAPI requires a description and utoipa leaves
//! an empty one out.
//!
//! A handler inside of another function's body is not found, and neither is a handler with `impl_for`. Put such a
//! handler into a module.
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
//! A handler in `api_route` of aide 0.15 documents itself if its arguments and its return type implement aide's
//! `OperationInput` and `OperationOutput`. aide does not tell a handler its method: a handler that is routed for an
//! unguarded method is documented as if it were guarded. A handler's `…_with` transform runs last and replaces the
//! response of a status. `complete`, given to `finish_api_with`, marks the recorded responses of such a transform too.
//! With `aide::generate::infer_responses(false)` the rejections are not documented either.

#[cfg(feature = "aide")]
pub(crate) mod aide;
pub(crate) mod description;
pub(crate) mod problem;
pub(crate) mod recorded;
#[cfg(feature = "utoipa")]
pub(crate) mod utoipa;

#[cfg(feature = "aide")]
pub use crate::openapi::aide::complete;
#[cfg(feature = "aide")]
#[doc(hidden)]
pub use crate::openapi::aide::{Documented, identity};
#[cfg(feature = "utoipa")]
pub use crate::openapi::utoipa::ProblemComponent;
#[cfg(feature = "utoipa")]
#[doc(hidden)]
pub use crate::openapi::utoipa::operation;
