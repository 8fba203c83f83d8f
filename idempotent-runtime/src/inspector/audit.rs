//! Who has done what here: events for the log that is kept.

use crate::key::RecordKey;
use crate::operate::entry_view::State;
use crate::operate::masking::{masked, visible};

/// The `target` of the audit events. Route it to your audit log.
///
/// | field | |
/// |---|---|
/// | `action` | `purge`, or `reveal_keys` |
/// | `outcome` | of a purge: `purged`, `nothing_there`, `failed`, `rejected: …`; else `shown` |
/// | `by` | the name of the request's [`Operator`], or `unknown` |
/// | `store` | the name of the store in the registry |
/// | `scope`, `caller_digest`, `key`, `id` | of a purge: the entry. The key is [`masked`](crate::operate::masked). The caller is the digest of [`RecordKey::digested`](crate::RecordKey::digested), or as it is stored if the registry stores digests |
/// | `state` | of a purge: the state of the entry before |
pub const AUDIT_TARGET: &str = "idempotent::audit";

/// The operator who makes the request. Your own authentication adds it to the request's extensions: the inspector rejects
/// requests without one, and writes the name to the audit.
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
    /// An operator with this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// The name in the log: one line, whatever it is.
fn name(operator: Option<&Operator>) -> String {
    operator.map_or_else(|| "unknown".to_owned(), |operator| visible(operator.name()))
}

pub(super) fn revealed(operator: Option<&Operator>, store: &str) {
    let by = name(operator);
    tracing::info!(target: AUDIT_TARGET, action = "reveal_keys", outcome = "shown", by, store, "keys were shown");
}

/// What a purge was asked for; its end is told by [`Purge::ended`].
pub(super) struct Purge<'a> {
    pub(super) operator: Option<&'a Operator>,
    pub(super) store: &'a str,
    pub(super) keys_are_digests: bool,
}

impl Purge<'_> {
    pub(super) fn ended(&self, key: Option<&RecordKey>, id: Option<&str>, state: Option<State>, outcome: &str) {
        let by = name(self.operator);
        let caller_digest = key.and_then(|key| {
            if self.keys_are_digests { key.caller().map(Into::into) } else { key.digested().caller().map(String::from) }
        });
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
            "a purge was asked for"
        );
    }
}
