//! The savepoints of a handler, which sqlx counts as levels of the transaction.

use crate::transaction::begun::{Failure, OUTERMOST};

/// The state of the handler's savepoints.
#[derive(Default)]
pub(super) struct Levels {
    /// The number of open savepoints.
    pub(super) open: usize,
    /// A savepoint was begun, so its rollback may be queued.
    pub(super) were_used: bool,
    /// It is unknown whether a savepoint has begun or ended. sqlx may count too few levels, and then its COMMIT would
    /// commit the whole transaction.
    pub(super) are_lost: bool,
}

impl Levels {
    /// Returns the depth that sqlx must count.
    pub(super) fn depth(&self) -> usize {
        OUTERMOST + self.open
    }
}

/// An open savepoint.
pub(super) struct Level {
    pub(super) number: usize,
    /// The failure that was seen before the savepoint began.
    pub(super) failure: Option<Failure>,
}

#[derive(Clone, Copy)]
pub(super) enum End {
    Commit,
    RollBack,
}
