//! The signatures of the card network's events, in Stripe's format: `Network-Signature: t=<seconds>,v1=<HMAC-SHA256>`.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use hmac::{Hmac, KeyInit, Mac};
use serde::de::DeserializeOwned;
use sha2::Sha256;

use crate::api::App;
use crate::error::ApiError;

/// The header with the signature.
pub const HEADER: &str = "network-signature";

/// Limits how long an attacker can replay a captured event.
const TOLERANCE: Duration = Duration::from_mins(5);

/// The secret that the card network and this service share.
#[derive(Clone, PartialEq, Eq)]
pub struct NetworkSecret(Arc<str>);

impl NetworkSecret {
    /// For trying out only: the secret is public, so everyone can sign with it.
    pub const PUBLIC: &str = "whsec_for_trying_out";

    /// Whether the secret is [`NetworkSecret::PUBLIC`].
    pub fn is_public(&self) -> bool {
        &*self.0 == Self::PUBLIC
    }

    /// The header's value for an event that the network sends now.
    pub fn sign(&self, event: &[u8]) -> String {
        self.sign_at(SystemTime::now(), event)
    }

    /// The same for an event that the network sends at another time.
    pub fn sign_at(&self, time: SystemTime, event: &[u8]) -> String {
        let time = seconds(time).to_string();
        let signature = self.mac(&time, event).finalize().into_bytes();
        format!("t={time},v1={}", hex::encode(signature))
    }

    /// Compares in constant time.
    fn verify(&self, headers: &HeaderMap, event: &[u8]) -> Result<(), ApiError> {
        let header = headers.get(HEADER).and_then(|value| value.to_str().ok()).ok_or(ApiError::BadSignature)?;
        let part = |name| header.split(',').find_map(|part| part.strip_prefix(name)).ok_or(ApiError::BadSignature);
        let (time, signature) = (part("t=")?, hex::decode(part("v1=")?).map_err(|_| ApiError::BadSignature)?);
        self.mac(time, event).verify_slice(&signature).map_err(|_| ApiError::BadSignature)?;
        let sent: u64 = time.parse().map_err(|_| ApiError::BadSignature)?;
        let is_recent = seconds(SystemTime::now()).abs_diff(sent) <= TOLERANCE.as_secs();
        if is_recent { Ok(()) } else { Err(ApiError::BadSignature) }
    }

    fn mac(&self, time: &str, event: &[u8]) -> Hmac<Sha256> {
        let mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).expect("HMAC takes keys of every length");
        mac.chain_update(time).chain_update(".").chain_update(event)
    }
}

impl FromStr for NetworkSecret {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() >= 16 { Ok(Self(text.into())) } else { Err("write a secret of at least 16 characters") }
    }
}

/// The seconds since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

/// An event that the card network has signed, from JSON.
///
/// An extractor runs before the event's id is claimed, so a forged event claims and records nothing.
pub struct Signed<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Signed<T> {
    type Rejection = Response;

    async fn from_request(request: Request, app: &App) -> Result<Self, Response> {
        let headers = request.headers().clone();
        let body = Bytes::from_request(request, app).await.map_err(IntoResponse::into_response)?;
        app.network_secret.verify(&headers, &body).map_err(IntoResponse::into_response)?;
        let mut verified = Request::new(Body::from(body));
        *verified.headers_mut() = headers;
        let Json(event) = Json::from_request(verified, app).await.map_err(IntoResponse::into_response)?;
        Ok(Self(event))
    }
}
