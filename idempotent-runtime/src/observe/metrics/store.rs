//! How long the calls of one store take, and which of them fail.

use std::future::Future;
use std::sync::{LazyLock, OnceLock};

use metrics::{Counter, Histogram, counter, histogram};

use crate::observe::metrics::meters::METERS;
use crate::observe::metrics::names::{STORE_DURATION_SECONDS, STORE_ERRORS_TOTAL};
use crate::observe::op::Op;
use crate::store::error::StoreError;
use crate::sync::tokio::time::Instant;
use crate::transaction::error::{Aborted, Conflict, Ended};

pub(crate) struct StoreMeter {
    store: String,
    ops: [OnceLock<Calls>; OPS],
}

struct Calls {
    duration: Histogram,
    errors: Counter,
}

const OPS: usize = Op::LookUp as usize + 1;

impl Op {
    fn name(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Renew => "renew",
            Self::Complete => "complete",
            Self::Release => "release",
            Self::Get => "get",
            #[cfg(feature = "inspector")]
            Self::Purge => "purge",
            #[cfg(feature = "operate")]
            Self::Resolve => "resolve",
            Self::Count => "count",
            Self::Begin => "begin",
            Self::Record => "record",
            Self::Verify => "verify",
            Self::Commit => "commit",
            Self::RollBack => "roll_back",
            Self::LookUp => "look_up",
        }
    }
}

/// Begins the series of failed calls at 0, for the operations that every handler needs.
pub(super) fn begin_errors(store: &str) {
    for op in [Op::Claim, Op::Renew, Op::Complete, Op::Release] {
        counter!(STORE_ERRORS_TOTAL, "store" => store.to_owned(), "op" => op.name()).increment(0);
    }
}

impl StoreMeter {
    pub(crate) fn new(store: &str) -> Self {
        Self { store: store.to_owned(), ops: [const { OnceLock::new() }; OPS] }
    }

    pub(crate) async fn measure<T>(
        &self,
        op: Op,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let answer = call.await;
        self.count(op, begun, answer.as_ref().err());
        answer
    }

    pub(crate) fn measure_now<T>(&self, op: Op, call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let begun = Instant::now();
        let answer = call();
        self.count(op, begun, answer.as_ref().err());
        answer
    }

    fn count(&self, op: Op, begun: Instant, error: Option<&StoreError>) {
        let calls = self.ops[op as usize].get_or_init(|| self.calls(op));
        calls.duration.record(begun.elapsed());
        if error.is_some_and(is_of_the_store) {
            calls.errors.increment(1);
        }
    }

    fn calls(&self, op: Op) -> Calls {
        // Creating the meters also registers the descriptions.
        LazyLock::force(&METERS);
        let (store, op) = (self.store.clone(), op.name());
        Calls {
            duration: histogram!(STORE_DURATION_SECONDS, "store" => store.clone(), "op" => op),
            errors: counter!(STORE_ERRORS_TOTAL, "store" => store, "op" => op),
        }
    }
}

/// Returns whether the error is a fault of the store. The store has no fault if a statement of the handler has failed
/// or has ended its transaction, if two transactions conflict, or if one caller has exceeded its quota.
fn is_of_the_store(error: &StoreError) -> bool {
    match error {
        StoreError::OverQuota => false,
        StoreError::Unavailable(source) => !(source.is::<Aborted>() || source.is::<Ended>() || source.is::<Conflict>()),
        _ => true,
    }
}
