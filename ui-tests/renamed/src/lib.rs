//! A crate whose manifest gives the runtime another name: the attribute finds it.

use axum::debug_handler;
use idem::idempotent;

/// With an expression and a wait.
#[idempotent(scope = "renamed", caller = "one", fingerprint = body.len(), in_flight = wait("1s"))]
pub async fn create_charge(body: String) -> String {
    body
}

/// Behind another macro.
#[idempotent(scope = "renamed-debug")]
#[debug_handler]
pub async fn create_refund(body: String) -> String {
    body
}

#[cfg(test)]
mod tests {
    use super::{create_charge, create_refund};

    #[test]
    fn handlers_of_a_renamed_runtime_are_registered() {
        let scopes: Vec<_> = idem::policies().map(idem::Policy::scope).collect();
        assert_eq!(scopes, ["renamed", "renamed-debug"]);
        let _: axum::Router = axum::Router::new()
            .route("/charges", axum::routing::post(create_charge))
            .route("/refunds", axum::routing::post(create_refund));
    }
}
