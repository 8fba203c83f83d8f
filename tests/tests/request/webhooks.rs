//! Events with a signature of their sender: which part verifies it, and when.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::prelude::{BASE64_STANDARD, Engine};
use hmac::{Hmac, KeyInit, Mac};
use idempotent_runtime::{IdempotencyLayer, Policy, Registry, idempotent};
use idempotent_tests::{Answer, FaultyStore, Runs, Server, answer};
use serde::Deserialize;
use sha2::Sha256;

const SECRET: &[u8] = b"shared with the sender";
const EVENT: &str = r#"{"id": "evt_1"}"#;

#[derive(Deserialize)]
struct Event {
    id: String,
}

/// As in the guide: an event whose sender knows the secret.
struct Signed(Event);

fn mac(secret: &[u8], body: &[u8]) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of every length").chain_update(body)
}

impl<S: Send + Sync> FromRequest<S> for Signed {
    type Rejection = StatusCode;

    async fn from_request(request: Request, state: &S) -> Result<Self, StatusCode> {
        let signature = request.headers().get("x-signature").and_then(|value| BASE64_STANDARD.decode(value).ok());
        let body = Bytes::from_request(request, state).await.map_err(|error| error.status())?;
        let verified = mac(SECRET, &body).verify_slice(&signature.unwrap_or_default());
        verified.map_err(|_| StatusCode::UNAUTHORIZED)?;
        serde_json::from_slice(&body).map(Self).map_err(|_| StatusCode::BAD_REQUEST)
    }
}

#[idempotent(scope = "events", ttl = "30d", cache = all, key = event.id, fingerprint = none)]
async fn receive(State(runs): State<Runs>, Signed(event): Signed) -> String {
    format!("{} taken by run {}", event.id, runs.run().await)
}

/// The middleware that must be around a layer.
async fn verify(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let signature = parts.headers.get("x-signature").and_then(|value| BASE64_STANDARD.decode(value).ok());
    let body = axum::body::to_bytes(body, 1024).await.expect("the body is small");
    match mac(SECRET, &body).verify_slice(&signature.unwrap_or_default()) {
        Ok(()) => next.run(Request::from_parts(parts, body.into())).await,
        Err(_) => StatusCode::UNAUTHORIZED.into_response(),
    }
}

async fn receive_beneath_a_layer(State(runs): State<Runs>, body: Bytes) -> String {
    let event: Event = serde_json::from_slice(&body).expect("the event was signed");
    format!("{} taken by run {}", event.id, runs.run().await)
}

async fn deliver(server: &Server, path: &str, signature: Option<&[u8]>) -> Answer {
    let mut request = server.post(path).header("idempotency-key", "evt_1").body(EVENT);
    if let Some(secret) = signature {
        let signature = mac(secret, EVENT.as_bytes()).finalize().into_bytes();
        request = request.header("x-signature", BASE64_STANDARD.encode(signature));
    }
    answer(request).await
}

#[tokio::test]
async fn forged_event_claims_nothing_and_the_genuine_one_runs() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let layer = IdempotencyLayer::new(Policy::builder("layered").cache_all().build().expect("the policy is valid"));
    let layered = post(receive_beneath_a_layer).layer(layer).layer(middleware::from_fn(verify));
    let app = Router::new().route("/events", post(receive)).route("/layered", layered).with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(store.clone()).layer())).await;
    for (run, path) in [(1, "/events"), (2, "/layered")] {
        let claims = store.claims();
        for forged in [None, Some(&b"guessed"[..])] {
            let rejected = deliver(&server, path, forged).await;
            assert_eq!((rejected.status, rejected.is_replay()), (StatusCode::UNAUTHORIZED, false), "{path}");
        }
        assert_eq!((store.claims(), runs.started()), (claims, run - 1), "{path}");
        for is_replay in [false, true, true] {
            let taken = deliver(&server, path, Some(SECRET)).await;
            assert_eq!((taken.status, taken.is_replay()), (StatusCode::OK, is_replay), "{path}");
            assert_eq!(taken.text(), format!("evt_1 taken by run {run}"));
        }
        let late = deliver(&server, path, Some(b"guessed")).await;
        assert_eq!((late.status, late.body.as_slice(), late.is_replay()), (StatusCode::UNAUTHORIZED, &b""[..], false));
    }
    assert_eq!(runs.started(), 2);
}
