//! The user who sends a request. A real service would verify a token here; the demo accepts any name.

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use crate::error::ApiError;

/// The user who sent the request.
pub struct User {
    /// The name in the token.
    pub name: String,
}

impl<S: Sync> FromRequestParts<S> for User {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let credentials = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        match credentials.and_then(|value| value.strip_prefix("Bearer ")) {
            Some(name) if !name.trim().is_empty() => Ok(Self { name: name.trim().to_owned() }),
            _ => Err(ApiError::Unauthenticated),
        }
    }
}
