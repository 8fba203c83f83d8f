//! What the soak test and its server tell each other.

use serde::{Deserialize, Serialize};

/// So small that the memory store is full much of the time.
pub const MEMORY_BYTES: usize = 2 * 1024 * 1024;

/// How long the server's records live.
pub const TTL: std::time::Duration = std::time::Duration::from_secs(10);

/// What the server holds at one moment.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Reading {
    /// How many executions there were, from the start.
    pub executions: u64,
    /// Guarded requests that still run.
    pub running: usize,
    /// Tasks of its runtime that are alive.
    pub tasks: usize,
    /// Open file descriptors.
    pub descriptors: usize,
    /// Resident memory.
    pub resident_kib: u64,
    /// What the memory store keeps.
    pub memory_entries: usize,
    /// What the memory store counts for it.
    pub memory_bytes: usize,
    /// Living entries of the SQLite store; 1 for more.
    pub sqlite_entries: usize,
}

impl Reading {
    /// Whether nothing is left of any request.
    pub fn is_at_rest(&self) -> bool {
        self.running == 0 && self.memory_entries == 0 && self.sqlite_entries == 0
    }
}
