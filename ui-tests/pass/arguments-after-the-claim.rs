//! Several arguments after the claim become one argument, and other attributes see them as they were written.

#![deny(warnings)]

use axum::extract::{FromRequestParts, Path, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::routing::{delete, post};
use axum::{Json, Router};
use idempotent_runtime::idempotent;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

#[derive(Clone)]
struct App;

#[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
struct Order {
    amount: u64,
}

/// Removes an order.
#[idempotent(scope = "above", claim_after = app)]
#[axum::debug_handler(state = App)]
#[utoipa::path(delete, path = "/orders/{id}", params(("id" = u32, Path)))]
#[tracing::instrument(skip(app), fields(amount = order.amount))]
#[must_use]
async fn above(State(app): State<App>, Path(id): Path<u32>, mut headers: HeaderMap, Json(order): Json<Order>) -> String {
    let App = app;
    headers.clear();
    format!("{id} {} {}", headers.len(), order.amount)
}

#[utoipa::path(post, path = "/orders")]
#[tracing::instrument]
#[idempotent(scope = "below", claim_after = none)]
async fn below(method: Method, _headers: HeaderMap, Json(order): Json<Order>) -> String {
    format!("{method} {}", order.amount)
}

#[axum::debug_handler]
#[idempotent(scope = "one", claim_after = none)]
async fn one(_unused: Method) -> StatusCode {
    StatusCode::CREATED
}

#[idempotent(scope = "generic", claim_after = method)]
async fn generic<P, T>(#[cfg(all())] method: Method, _first: P, mut part: P, Json(value): Json<T>) -> String
where
    P: ToString + Send + 'static,
    T: ToString + Send + 'static,
{
    let written = std::mem::replace(&mut part, _first).to_string();
    format!("{method} {written} {} {}", part.to_string(), value.to_string())
}

/// With an argument of an opaque type.
#[idempotent(scope = "opaque", claim_after = none, caller = "all")]
async fn opaque(_: impl FromRequestParts<()> + Send + 'static, _method: Method) {}

struct Orders;

impl Orders {
    #[idempotent(scope = "orders", claim_after = method)]
    async fn remove(method: Method, Path(id): Path<u32>, #[expect(unused_variables)] headers: HeaderMap) -> (StatusCode, String) {
        (StatusCode::OK, format!("{method} {id}"))
    }
}

/// Each expression mentions an argument, so that argument is extracted before the claim.
#[idempotent(scope = "mentioned", key = format!("{}{method}", headers.len()), caller = { let id = id; id })]
async fn mentioned(method: Method, headers: HeaderMap, Path(id): Path<u32>, body: String) -> String {
    format!("{method} {} {id} {body}", headers.len())
}

/// A field with the name of an argument does not mention the argument.
#[idempotent(scope = "fields", claim_after = order, key = order.amount.to_string(), caller = format!("{}", order.amount))]
async fn fields(Json(order): Json<Order>) {
    drop(order);
}

/// A member with the name of an argument after the claim.
#[idempotent(scope = "members", claim_after = app, caller = app.amount(), fingerprint = vec![app.amount()])]
async fn members(State(app): State<App>, amount: String) -> String {
    let App = app;
    amount
}

impl App {
    fn amount(&self) -> u64 {
        7
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (_router, document) = OpenApiRouter::<App>::new().routes(routes!(above)).routes(routes!(below)).split_for_parts();
    let text = document.to_json().unwrap();
    assert!(text.contains("#/components/schemas/Order"), "the request's schema is kept: {text}");

    let _: Router = Router::new()
        .route("/one", post(one))
        .route("/generic", post(generic::<HeaderMapText, u8>))
        .route("/orders/{id}", delete(Orders::remove))
        .route("/mentioned/{id}", post(mentioned))
        .route("/fields", post(fields))
        .route("/members", post(members).with_state(App));
    let order = Order { amount: 7 };
    assert_eq!(above(State(App), (Path(1), HeaderMap::new(), Json(order)).into()).await.status(), 200);
    assert_eq!(opaque((Method::GET, Method::GET).into()).await.status(), 200);
    assert_eq!(generic(Method::GET, (1, 2, Json(3)).into()).await.status(), 200);
    assert_eq!(Orders::remove(Method::DELETE, (Path(1), HeaderMap::new()).into()).await.status(), 200);
}

/// A parts extractor that implements `Display`.
struct HeaderMapText;

impl std::fmt::Display for HeaderMapText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("headers")
    }
}

impl<S: Sync> FromRequestParts<S> for HeaderMapText {
    type Rejection = StatusCode;

    async fn from_request_parts(_: &mut axum::http::request::Parts, _: &S) -> Result<Self, StatusCode> {
        Ok(Self)
    }
}
