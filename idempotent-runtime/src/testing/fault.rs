//! The faults of calls, and the counts of calls.

use crate::store::error::StoreError;
use crate::sync::{Mutex, lock};
use crate::transaction::transactions::{TransactionFaults, TransactionPhase};

/// The fault of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The call reaches the store.
    #[default]
    None,
    /// The call fails and has no effect. An unreachable store fails in every call, so `on_store_error = "run"` runs a
    /// handler only if [`on_get`](crate::testing::FaultyStore::on_get) fails like
    /// [`on_claim`](crate::testing::FaultyStore::on_claim).
    Unreachable,
    /// The call fails because the store is full.
    Full,
    /// The call fails because the entry cannot be read.
    Damaged,
    /// The call never answers and has no effect.
    Hangs,
    /// The call takes effect and never answers.
    AnswerIsLost,
    /// The call takes effect. It answers when [`FaultyStore::let_through`](super::FaultyStore::let_through) is called.
    AnswerIsLate,
    /// The call takes effect when [`FaultyStore::let_through`](super::FaultyStore::let_through) is called, even if its caller no longer waits.
    ArrivesLate,
}

impl Fault {
    /// Returns the error of a call that fails at once.
    pub(super) fn error(self) -> Option<StoreError> {
        match self {
            Self::Unreachable => Some(StoreError::unavailable("the line is cut")),
            Self::Full => Some(StoreError::Full),
            Self::Damaged => Some(StoreError::damaged("not a record")),
            Self::None | Self::Hangs | Self::AnswerIsLost | Self::AnswerIsLate | Self::ArrivesLate => None,
        }
    }
}

/// The faults that are set, and the number of each call.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) claim: Fault,
    pub(super) renew: Fault,
    pub(super) complete: Fault,
    pub(super) release: Fault,
    pub(super) resolve: Fault,
    pub(super) get: Fault,
    pub(super) list: Fault,
    pub(super) purge: Fault,
    pub(super) claims: usize,
    pub(super) looks: usize,
    pub(super) completions: usize,
    pub(super) ends: usize,
    pub(super) transactions: Option<TransactionPhase>,
}

impl TransactionFaults for Mutex<Faults> {
    fn before(&self, phase: TransactionPhase) -> Option<StoreError> {
        let fails = lock(self).transactions == Some(phase);
        fails.then(|| StoreError::unavailable("the line of the transaction is cut"))
    }
}
