use idempotent_runtime::Registry;
use idempotent_runtime::store::MemoryStore;

/// As that of sqlx.
struct PgPool;

fn main() {
    let registry = Registry::builder(MemoryStore::new()).store("payments", PgPool);
    registry.build().install().unwrap();
}
