//! The in-process store, for tests and for a single process that may lose its keys when it ends.

pub(crate) mod deletion_task;
pub(crate) mod expired_deletion;
pub(crate) mod packed;
pub(crate) mod shard;
pub(crate) mod shares;
pub(crate) mod store;
pub(crate) mod stored;
pub(crate) mod table;
