//! Faults inside of handlers: they block their thread, or their transactions end while they run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Ensures that at most one thread of the process is blocked at a time: the others must be able to run.
#[derive(Default)]
pub(super) struct BlockedThread(AtomicBool);

impl BlockedThread {
    /// Blocks this thread. If another thread is already blocked, waits without blocking.
    pub(super) async fn block(&self, time: Duration) {
        // Yields first, so that tasks that this one has just woken can move to other threads.
        tokio::time::sleep(Duration::from_millis(1)).await;
        if self.0.swap(true, Ordering::AcqRel) {
            tokio::time::sleep(time).await;
        } else {
            std::thread::sleep(time);
            self.0.store(false, Ordering::Release);
        }
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// How a transaction ends while its handler runs, and what the handler does then, because it does not notice. This
/// happens in the first execution of a key; all later ones run normally.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// How the transaction ends.
    pub how: HowEnded,
    /// Whether the effect happens before the end of the transaction or after it.
    pub effect_comes_first: bool,
    /// The status of the handler's response: 201, or 502 as if a service that it calls were unavailable.
    pub status: u16,
}

/// How a transaction ends while its handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HowEnded {
    /// The handler sends `ROLLBACK` to the database itself.
    RawRollback,
    /// A nested `begin` is dropped before it is answered, as by a timeout around it.
    DroppedBegin,
    /// `ON CONFLICT ROLLBACK` (SQLite).
    OnConflict,
    /// `RAISE(ROLLBACK)` (SQLite).
    Raise,
    /// The connection is terminated (PostgreSQL).
    Terminated,
}

impl HowEnded {
    /// The ways that SQLite has.
    pub const OF_SQLITE: [Self; 4] = [Self::RawRollback, Self::DroppedBegin, Self::OnConflict, Self::Raise];
    /// The ways that PostgreSQL has.
    pub const OF_POSTGRES: [Self; 3] = [Self::RawRollback, Self::DroppedBegin, Self::Terminated];

    /// The statement that ends the transaction; `None` if no statement does it.
    pub(super) fn statement(self) -> Option<&'static str> {
        match self {
            Self::RawRollback => Some("ROLLBACK"),
            Self::DroppedBegin => None,
            Self::OnConflict => Some("INSERT INTO traps VALUES (1)"),
            Self::Raise => Some("UPDATE traps SET id = 2"),
            Self::Terminated => Some("SELECT pg_terminate_backend(pg_backend_pid())"),
        }
    }
}
