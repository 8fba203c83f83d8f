use idempotent_runtime::store::MemoryStore;

async fn open_store() -> MemoryStore {
    MemoryStore::new()
}

fn main() {
    idempotent_runtime::install(open_store()).unwrap();
}
