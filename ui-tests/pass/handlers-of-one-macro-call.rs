//! Handlers that one macro call emits into several `impl` blocks have the same default scope, and `install` reports it.
//! `tests/tests/process/shared_default_scope.rs` has the same handlers below a layer.

use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{InstallError, idempotent};

struct Card;
struct Bank;

macro_rules! pays_with {
    ($($method:ident)*) => {
        $(
            impl $method {
                #[idempotent]
                async fn pay() -> &'static str {
                    stringify!($method)
                }
            }
        )*
    };
}

pays_with!(Card Bank);

fn main() {
    drop((Card::pay(().into()), Bank::pay(().into())));
    assert_eq!(idempotent_runtime::policies().count(), 2);
    let error = idempotent_runtime::install(MemoryStore::new()).expect_err("one scope for two handlers");
    assert!(matches!(error, InstallError::SharedDefaultScope { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("::Card::pay at ") && message.contains("::Bank::pay at "), "{message}");
}
