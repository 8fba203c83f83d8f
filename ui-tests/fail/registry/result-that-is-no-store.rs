use idempotent_runtime::Registry;
use idempotent_runtime::store::MemoryStore;

fn open_store() -> Result<MemoryStore, String> {
    Ok(MemoryStore::new())
}

fn main() {
    Registry::new(open_store()).install().unwrap();
}
