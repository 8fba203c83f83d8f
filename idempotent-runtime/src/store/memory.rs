//! The in-process store.
/// A store in this process.
pub struct MemoryStore;
/// Builds it.
pub struct MemoryStoreBuilder;
