//! Two handlers that would share a default scope are refused at start-up: one could replay the other's responses.

use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{InstallError, idempotent, install};

struct Charges;
struct Refunds;

impl Charges {
    #[idempotent]
    async fn create() {}
}

impl Refunds {
    #[idempotent]
    async fn create() {}
}

#[tokio::test]
async fn install_names_both_handlers() {
    Charges::create(().into()).await;
    Refunds::create(().into()).await;
    let error = install(MemoryStore::new()).expect_err("one scope for two handlers");
    assert!(matches!(error, InstallError::SharedDefaultScope { .. }), "{error}");
    let message = error.to_string();
    assert_eq!(message.matches("shared_default_scope.rs:").count(), 2, "{message}");
    assert!(message.contains("scope = "), "{message}");
}
