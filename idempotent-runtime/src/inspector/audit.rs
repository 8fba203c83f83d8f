//! The audit events of the inspector: what operators did, and to which entry.

use crate::key::RecordKey;
use crate::operate::audit::{AUDIT_TARGET, caller_digest, line};
use crate::operate::entry_view::State;
use crate::operate::masking::{masked, visible};

/// The operator who makes the request. Your own authentication adds it to the request's extensions. The inspector
/// rejects requests without an operator, and writes the operator's name to the audit events.
///
/// # Examples
///
/// ```
/// use axum::extract::Request;
/// use axum::http::StatusCode;
/// use axum::middleware::Next;
/// use axum::response::Response;
/// use idempotent_runtime::inspector::Operator;
///
/// async fn operators_only(mut request: Request, next: Next) -> Result<Response, StatusCode> {
///     let authorization = request.headers().get("authorization").ok_or(StatusCode::UNAUTHORIZED)?;
///     let name = if authorization == "Bearer s3cret" { "alice" } else { return Err(StatusCode::FORBIDDEN) };
///     request.extensions_mut().insert(Operator::new(name));
///     Ok(next.run(request).await)
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator(String);

impl Operator {
    /// Creates an operator with this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// Returns the operator's name for the log, always on one line.
fn name(operator: Option<&Operator>) -> String {
    line(operator.map(Operator::name))
}

pub(super) fn revealed(operator: Option<&Operator>, store: &str) {
    let by = name(operator);
    tracing::info!(target: AUDIT_TARGET, action = "reveal_keys", outcome = "shown", by, store, "keys were shown");
}

/// A requested purge. [`Purge::ended`] logs how it ended.
pub(super) struct Purge<'a> {
    pub(super) operator: Option<&'a Operator>,
    pub(super) store: &'a str,
    pub(super) keys_are_digests: bool,
}

impl Purge<'_> {
    pub(super) fn ended(&self, key: Option<&RecordKey>, id: Option<&str>, state: Option<State>, outcome: &str) {
        let by = name(self.operator);
        let caller_digest = key.and_then(|key| caller_digest(key, self.keys_are_digests));
        tracing::warn!(
            target: AUDIT_TARGET,
            action = "purge",
            outcome,
            by,
            store = self.store,
            scope = key.map(|key| visible(&key.scope())),
            caller_digest,
            key = key.map(|key| masked(&key.key())),
            id = id.map(visible),
            state = state.map(State::as_str),
            "a purge was requested"
        );
    }
}
