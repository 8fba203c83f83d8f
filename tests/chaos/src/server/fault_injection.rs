//! What handlers do to themselves: they block their thread, and their transactions end under them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Of all threads of the process, at most one is blocked at a time: the others must be able to go on.
#[derive(Default)]
pub(super) struct BlockedThread(AtomicBool);

impl BlockedThread {
    /// Blocks this thread; where another one is blocked already, waits without blocking.
    pub(super) async fn block(&self, time: Duration) {
        // What this task has just woken must not be kept from other threads.
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

/// How a transaction ends under its handler, and what the handler, which does not notice, does then. The first execution
/// of a key does so; all later ones behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// How it ends.
    pub how: HowEnded,
    /// Whether the effect comes before the end or after it.
    pub effect_comes_first: bool,
    /// What the handler answers: 201, or 502 as if a service that it calls were away.
    pub status: u16,
}

/// How a transaction ends under its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HowEnded {
    /// The handler says so to the database itself.
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
    /// Those of SQLite.
    pub const OF_SQLITE: [Self; 4] = [Self::RawRollback, Self::DroppedBegin, Self::OnConflict, Self::Raise];
    /// Those of PostgreSQL.
    pub const OF_POSTGRES: [Self; 3] = [Self::RawRollback, Self::DroppedBegin, Self::Terminated];

    /// What does it; `None` where it is no statement.
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
