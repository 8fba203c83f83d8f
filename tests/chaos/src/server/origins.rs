//! Handlers that report with which credentials and for which target they ran, so that a record sent to the wrong client
//! is noticed.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::handler::Handler as _;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use idempotent_runtime::{Idempotency, idempotent};
use tower::ServiceExt as _;

use super::handlers::{Order, execute};
use super::{App, Guard};

/// The headers that identify a client.
pub const CREDENTIALS: [&str; 3] = ["authorization", "x-api-key", "cookie"];

/// The header that names the path to which the batch handler forwards a request.
pub const FORWARD_TO: &str = "x-forward-to";

pub(super) fn router() -> Router<Arc<App>> {
    Router::new().route("/credentials", post(credentials)).route("/batch", post(batch))
}

async fn credentials(State(app): State<Arc<App>>, request: Request) -> Response {
    match app.without {
        Some(Guard::Credentials) => with_any_credentials.call(request, app).await,
        _ => with_credentials.call(request, app).await,
    }
}

#[idempotent(scope = "credentials", shared_scope, cache = [201, 402], lease = "3s")]
async fn with_credentials(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    idempotency: Idempotency,
    Json(order): Json<Order>,
) -> Response {
    execute(&app, &idempotency, &order, origin(&headers)).await
}

/// The same handler with a policy that does not distinguish credentials. The attribute needs each handler in full.
#[idempotent(scope = "credentials", shared_scope, cache = [201, 402], lease = "3s", caller = "everyone")]
async fn with_any_credentials(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    idempotency: Idempotency,
    Json(order): Json<Order>,
) -> Response {
    execute(&app, &idempotency, &order, origin(&headers)).await
}

fn origin(headers: &HeaderMap) -> String {
    CREDENTIALS.map(|name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("none")).join(", ")
}

/// Forwards the request to another path. Only the URI of its head changes.
async fn batch(State(app): State<Arc<App>>, request: Request) -> Response {
    let target = request.headers().get(FORWARD_TO).and_then(|target| target.to_str().ok()?.parse::<Uri>().ok());
    let Some(target) = target else { return StatusCode::BAD_REQUEST.into_response() };
    let (parts, body) = request.into_parts();
    let mut forwarded = parts.clone();
    forwarded.uri = target;
    let inner = match app.without {
        Some(Guard::Target) => post(to_any_target),
        _ => post(to_target),
    };
    let inner: Router = Router::new().route("/accounts/{account}", inner).with_state(app);
    inner.oneshot(Request::from_parts(forwarded, body)).await.into_response()
}

#[idempotent(scope = "forwarded", shared_scope, cache = [201, 402], lease = "3s")]
async fn to_target(
    State(app): State<Arc<App>>,
    Path(account): Path<u32>,
    idempotency: Idempotency,
    Json(order): Json<Order>,
) -> Response {
    execute(&app, &idempotency, &order, format!("/accounts/{account}")).await
}

/// A handler that does not distinguish targets.
#[idempotent(scope = "forwarded", shared_scope, cache = [201, 402], lease = "3s", fingerprint = none)]
async fn to_any_target(
    State(app): State<Arc<App>>,
    Path(account): Path<u32>,
    idempotency: Idempotency,
    Json(order): Json<Order>,
) -> Response {
    execute(&app, &idempotency, &order, format!("/accounts/{account}")).await
}
