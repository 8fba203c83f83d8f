//! Mounts the inspector behind a password. A real service would ask a directory of its operators.

use std::str::FromStr;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use idempotent_runtime::Registry;
use idempotent_runtime::inspector::{Inspector, Operator};
use subtle::ConstantTimeEq as _;

/// The path of the inspector.
pub(crate) const PATH: &str = "/ops/idempotency";

/// The account of the operator who may look up and purge entries.
#[derive(Clone)]
pub(crate) struct Account {
    name: String,
    authorization: String,
}

impl FromStr for Account {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some((name, password)) if !name.is_empty() && password.len() >= 12 => {
                Ok(Self { name: name.to_owned(), authorization: format!("Basic {}", BASE64_STANDARD.encode(text)) })
            }
            _ => Err("write `NAME:PASSWORD`, with a password of at least 12 characters"),
        }
    }
}

pub(crate) fn router(registry: &Registry, account: Account) -> Router {
    let inspector = Inspector::new(registry).allow_purge().router();
    Router::new().nest(PATH, inspector.layer(from_fn_with_state(account, operators_only)))
}

async fn operators_only(State(account): State<Account>, mut request: Request, next: Next) -> Response {
    if !account.is_of(request.headers()) {
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"operators\"")]).into_response();
    }
    request.extensions_mut().insert(Operator::new(account.name));
    next.run(request).await
}

impl Account {
    /// Takes the same time for every password, so that the time tells nothing about the right one.
    fn is_of(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
        given.ct_eq(self.authorization.as_bytes()).into()
    }
}
