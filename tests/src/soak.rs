//! The messages between the soak test and its server.

use serde::{Deserialize, Serialize};

/// The memory store's limit. It is so small that the store is full much of the time.
pub const MEMORY_BYTES: usize = 2 * 1024 * 1024;

/// How long the server's records live.
pub const TTL: std::time::Duration = std::time::Duration::from_secs(10);

/// The state of the server at one moment.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Reading {
    /// The number of executions since the start.
    pub executions: u64,
    /// The number of guarded requests that still run.
    pub running: usize,
    /// The number of live tasks in the server's runtime.
    pub tasks: usize,
    /// The number of open file descriptors.
    pub descriptors: usize,
    /// The resident memory, in KiB.
    pub resident_kib: u64,
    /// The number of entries in the memory store.
    pub memory_entries: usize,
    /// The number of bytes that the memory store counts for its entries.
    pub memory_bytes: usize,
    /// The number of live entries in the SQLite store: 0, or 1 for any larger number.
    pub sqlite_entries: usize,
}

impl Reading {
    /// Whether the server keeps nothing of any request.
    pub fn is_at_rest(&self) -> bool {
        self.running == 0 && self.memory_entries == 0 && self.sqlite_entries == 0
    }
}
