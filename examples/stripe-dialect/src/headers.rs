//! The response headers that Stripe's SDKs show to their users.

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;

use crate::books::unique;

/// Gives each response, also a replay, its own id, and repeats the idempotency key of the request.
pub(crate) async fn name_the_request(request: Request, next: Next) -> Response {
    let key = request.headers().get("idempotency-key").cloned();
    let mut response = next.run(request).await;
    let id = HeaderValue::try_from(unique("req")).expect("letters and digits");
    response.headers_mut().insert("request-id", id);
    if let Some(key) = key {
        response.headers_mut().insert("idempotency-key", key);
    }
    response
}
