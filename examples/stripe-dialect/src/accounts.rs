//! The account that sends a request, which its secret key identifies.

use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use crate::error::ApiError;

/// The known secret keys, in the order of their accounts.
#[derive(Clone)]
pub struct Accounts(Arc<[String]>);

impl Accounts {
    /// Makes one account for each of these secret keys.
    ///
    /// # Errors
    ///
    /// When one of them does not begin with `sk_test_`.
    pub fn new(secret_keys: impl IntoIterator<Item = impl Into<String>>) -> anyhow::Result<Self> {
        let secret_keys: Arc<[String]> = secret_keys.into_iter().map(Into::into).collect();
        for key in &*secret_keys {
            let is_test_key = key.strip_prefix("sk_test_").is_some_and(|rest| !rest.is_empty());
            anyhow::ensure!(
                is_test_key,
                "a secret key must begin with `sk_test_`, such as `sk_test_tea`: no money moves here"
            );
        }
        Ok(Self(secret_keys))
    }

    fn of(&self, secret_key: &str) -> Option<Account> {
        let position = self.0.iter().position(|known| known == secret_key)?;
        Some(Account { id: format!("acct_{}", position + 1) })
    }
}

/// The account that a request belongs to.
pub(crate) struct Account {
    pub(crate) id: String,
}

impl<S> FromRequestParts<S> for Account
where
    Accounts: FromRef<S>,
    S: Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let credentials = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let secret_key = credentials.and_then(|value| value.strip_prefix("Bearer ")).ok_or(ApiError::NoSecretKey)?;
        Accounts::from_ref(state).of(secret_key.trim()).ok_or(ApiError::UnknownSecretKey)
    }
}
