//! What a handler's statements have met, as far as they ran where it can be seen.

use sqlx::Database;

use crate::policy::values::Isolation;
use crate::store::error::StoreError;
use crate::transaction::begun::{Begun, Failure};
use crate::transaction::error::TransactionError;

#[derive(Default)]
pub(super) struct Seen {
    /// Of the last statement that failed in a transaction in order.
    pub(super) failure: Option<Failure>,
    /// The connection itself was lent, where errors are not seen.
    is_lent: bool,
    pub(super) isolation: Option<Isolation>,
}

impl Seen {
    /// What an aborted transaction was aborted by, as far as that was seen.
    pub(super) fn is_conflict(&self) -> bool {
        self.failure == Some(Failure::Conflict)
    }

    /// Whether it may be a conflict that was not seen. Where the policy asks for isolation it is one as a rule; and a retry is
    /// safe in any case.
    pub(super) fn may_be_conflict(&self) -> bool {
        self.failure.is_none() && self.is_lent && self.isolation.is_some()
    }

    /// Of a transaction that was aborted by one, or may have been.
    pub(super) fn conflict(&self, aborted: StoreError) -> TransactionError {
        if self.is_conflict() { TransactionError::Conflict(aborted) } else { TransactionError::Unseen }
    }

    /// What failed since the savepoint is undone, and has aborted nothing. A conflict remains: it may have doomed the
    /// transaction, and explains a failure of the handler.
    pub(super) fn roll_back_to(&mut self, before: Option<Failure>) {
        if !self.is_conflict() {
            self.failure = before;
        }
    }

    pub(super) fn lend(&mut self) {
        self.is_lent = true;
    }

    pub(super) fn is_lent(&self) -> bool {
        self.is_lent
    }
}

/// Sees what one statement meets.
pub(super) struct Watch<'a, DB: Database> {
    pub(super) seen: &'a mut Seen,
    /// `None` in a unit test that calls the handler.
    pub(super) begun: Option<&'a dyn Begun<DB>>,
}

impl<DB: Database> Watch<'_, DB> {
    pub(super) fn note(&mut self, error: &sqlx::Error) {
        match self.begun.and_then(|begun| begun.failure(error)) {
            None | Some(Failure::Aborted) => {}
            failure => self.seen.failure = failure,
        }
    }

    pub(super) fn leave_to_the_handler(self) {
        self.seen.lend();
    }
}
