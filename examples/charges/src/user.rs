//! Who asks. A real service would verify a token here; the demo believes a name.

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use crate::error::ApiError;

/// Who sent the request.
pub struct User {
    /// As the token says.
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
