//! The least that a guard can do: a claim, a record and a replay, written into the handler by hand.
//!
//! Like `#[idempotent]`, it first extracts the arguments. Then it digests the request, looks the key up and claims it
//! under one lock, runs the handler, and keeps the response before it is sent. It does not handle leases and tokens,
//! clients that disconnect, expiry, a memory limit, responses that must not be recorded, callers, panics and traces.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest as _, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::charge::{CHARGES, HELD, Order, charge};
use crate::contenders::hold;

#[derive(Clone, Default)]
struct Records(Arc<Mutex<HashMap<String, Kept>>>);

struct Kept {
    fingerprint: [u8; 32],
    /// `None` while the handler runs.
    response: Option<(StatusCode, HeaderMap, Bytes)>,
}

/// The routes.
pub fn router() -> Router {
    let charges = async |State(records): State<Records>, request: Request| {
        guard(records, request, async |order| charge(order).into_response()).await
    };
    let held = async |State(records): State<Records>, request: Request| {
        guard(records, request, async |_| hold().await.into_response()).await
    };
    Router::new().route(CHARGES, post(charges)).route(HELD, post(held)).with_state(Records::default())
}

async fn guard(records: Records, request: Request, handler: impl AsyncFnOnce(Order) -> Response) -> Response {
    let (parts, body) = request.into_parts();
    let key = parts.headers.get("idempotency-key").and_then(|key| key.to_str().ok()).map(str::to_owned);
    let Ok(body) = to_bytes(body, 2 << 20).await else { return StatusCode::BAD_REQUEST.into_response() };
    let fingerprint = key.is_some().then(|| {
        let mut digest = Sha256::new();
        digest.update(parts.method.as_str());
        digest.update(parts.uri.path());
        digest.update(parts.headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes()));
        digest.update(&body);
        digest.finalize().into()
    });
    let order = match Json::from_request(Request::from_parts(parts, Body::from(body)), &()).await {
        Ok(Json(order)) => order,
        Err(rejection) => return rejection.into_response(),
    };
    let (Some(key), Some(fingerprint)) = (key, fingerprint) else { return handler(order).await };
    match lock(&records).entry(key.clone()) {
        Entry::Vacant(vacant) => _ = vacant.insert(Kept { fingerprint, response: None }),
        Entry::Occupied(kept) => {
            return match kept.get() {
                kept if kept.fingerprint != fingerprint => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
                Kept { response: None, .. } => StatusCode::CONFLICT.into_response(),
                Kept { response: Some((status, headers, body)), .. } => {
                    (*status, [("idempotent-replayed", "true")], headers.clone(), body.clone()).into_response()
                }
            };
        }
    }
    let (parts, body) = handler(order).await.into_parts();
    let Ok(body) = to_bytes(body, 4 << 20).await else { return StatusCode::BAD_GATEWAY.into_response() };
    let response = Some((parts.status, parts.headers.clone(), body.clone()));
    lock(&records).insert(key, Kept { fingerprint, response });
    Response::from_parts(parts, Body::from(body))
}

fn lock(records: &Records) -> std::sync::MutexGuard<'_, HashMap<String, Kept>> {
    records.0.lock().unwrap_or_else(PoisonError::into_inner)
}
