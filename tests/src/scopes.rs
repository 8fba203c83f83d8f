//! Checks the scopes of the handlers of a test program.

use idempotent_runtime::Registry;
use idempotent_runtime::store::MemoryStore;

use crate::Logs;

/// A registry logs equal scopes at ERROR, so they would appear in tests that read logs.
///
/// # Panics
///
/// When two handlers of the program have the same scope and do not both have `shared_scope`.
pub fn assert_different_scopes() {
    let logs = Logs::collect();
    let _layer = Registry::new(MemoryStore::new()).layer();
    assert_eq!(logs.of_level("ERROR"), Vec::<String>::new(), "give each handler of this program a scope of its own");
}
