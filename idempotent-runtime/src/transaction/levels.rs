//! The savepoints of a handler, which sqlx counts as levels of the transaction.

use crate::transaction::begun::{Failure, OUTERMOST};

/// The savepoints of the handler.
#[derive(Default)]
pub(super) struct Levels {
    /// Those that are open.
    pub(super) open: usize,
    /// One was begun, so that its rollback may be queued.
    pub(super) were_used: bool,
    /// The end or the begin of one is not known: sqlx may count too few levels, so that its COMMIT would be that of the whole
    /// transaction.
    pub(super) are_lost: bool,
}

impl Levels {
    /// What sqlx must count.
    pub(super) fn depth(&self) -> usize {
        OUTERMOST + self.open
    }
}

/// A savepoint that is open.
pub(super) struct Level {
    pub(super) number: usize,
    /// What was seen before it.
    pub(super) failure: Option<Failure>,
}

#[derive(Clone, Copy)]
pub(super) enum End {
    Commit,
    RollBack,
}
