//! Where operators look: the inspector, behind a password. A real service would ask its own directory of people.

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

/// Where the inspector is.
pub(crate) const PATH: &str = "/ops/idempotency";

/// Who may look, and purge.
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
    /// Takes as long for a password that is nearly right as for any other.
    fn is_of(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
        given.ct_eq(self.authorization.as_bytes()).into()
    }
}
