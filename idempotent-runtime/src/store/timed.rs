//! A store with a name, and a limit on how long one call may take.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::key::RecordKey;
use crate::observe::StoreMeter;
use crate::observe::op::Op;
use crate::record::Record;
use crate::retries::Retries;
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::contract::ImmediateStore;
use crate::store::erased::ErasedStore;
use crate::store::error::{StoreError, Waited};
use crate::store::line::{Call, WaitingLine, Withdrawn};
use crate::store::shortage;
use crate::sync::tokio::time::Instant;
use crate::transaction::transactions::Transactions;

/// A store whose calls have a time limit. A call that exceeds it fails: the store counts as unreachable unless it
/// answers other calls.
pub(crate) struct TimedStore {
    name: Box<str>,
    store: Arc<dyn ErasedStore>,
    limit: Duration,
    pub(crate) meter: StoreMeter,
    line: Arc<WaitingLine>,
    /// The line of calls that wait for a transaction. Handlers hold transactions for as long as they run, so the pace
    /// of this line says nothing about other calls.
    #[cfg_attr(not(feature = "__transactions"), allow(dead_code, reason = "there are no transactions"))]
    transaction_line: Arc<WaitingLine>,
}

impl TimedStore {
    pub(super) fn new(name: &str, store: Arc<dyn ErasedStore>, limit: Duration) -> Self {
        Self {
            name: name.into(),
            store,
            limit,
            meter: StoreMeter::new(name),
            line: Arc::new(WaitingLine::with_limit(limit)),
            transaction_line: Arc::new(WaitingLine::with_limit(limit)),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the time that one call may take.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// Returns the store if it answers at once.
    pub(crate) fn immediate(&self) -> Option<Immediate<'_>> {
        Some(Immediate { store: self.store.immediate()?, meter: &self.meter })
    }

    /// Returns the answer to a claim if it is available without waiting.
    pub(crate) fn claim_now(&self, key: &RecordKey, request: ClaimRequest) -> Option<Result<Claim, StoreError>> {
        if let Some(store) = self.store.immediate() {
            return Some(self.meter.measure_now(Op::Claim, || store.claim_now(key, request)));
        }
        self.store.at_hand(key).map(|record| Ok(Claim::Completed(record)))
    }

    pub(super) async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        if let Some(record) = self.store.at_hand(key) {
            return Ok(Claim::Completed(record));
        }
        self.timed(Op::Claim, self.store.claim(key, request)).await
    }

    pub(crate) async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        self.timed(Op::Renew, self.store.renew(key, token, lease)).await
    }

    /// Returns one answer for each renewal, or one error if the store renewed nothing within this time.
    pub(crate) async fn renew_many(
        &self,
        renewals: &[Renewal],
        within: Duration,
    ) -> Result<Vec<Result<Held, StoreError>>, StoreError> {
        let renewing = async {
            let mut answers = self.store.renew_many(renewals).await;
            if answers.iter().all(Result::is_err) {
                // The first error is reported for all renewals.
                return answers.swap_remove(0).map(|_| Vec::new());
            }
            Ok(answers)
        };
        let in_time = async {
            let renewed = Deadline::after(within).bound(renewing).await;
            renewed.unwrap_or(Err(StoreError::TimedOut(within)))
        };
        self.timed(Op::Renew, in_time).await
    }

    pub(crate) async fn complete(
        &self,
        key: &RecordKey,
        token: Token,
        record: Record,
        ttl: Duration,
    ) -> Result<Held, StoreError> {
        self.timed(Op::Complete, self.store.complete(key, token, record, ttl)).await
    }

    pub(crate) async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        self.timed(Op::Release, self.store.release(key, token)).await
    }

    /// Extends the time for which the record of a step is kept.
    pub(crate) async fn extend(&self, key: &RecordKey, ttl: Duration) -> Result<Held, StoreError> {
        self.timed(Op::Renew, self.store.extend(key, ttl)).await
    }

    /// Has no limit, because the waiting request has one.
    pub(crate) async fn changed(&self, key: &RecordKey) {
        self.store.changed(key).await;
    }

    pub(crate) fn transactions(&self) -> Option<Transactions> {
        self.store.transactions()
    }

    /// Returns whether a handler's transaction holds the key, as far as the store can tell. Such a key has no row.
    pub(crate) async fn is_in_transaction(&self, key: &RecordKey) -> Result<bool, StoreError> {
        match self.transactions() {
            Some(transactions) => self.timed(Op::Get, transactions.holder.holds(key)).await,
            None => Ok(false),
        }
    }

    #[cfg(feature = "metrics")]
    pub(crate) async fn unknown_outcomes(&self) -> Result<crate::store::entry::UnknownOutcomes, StoreError> {
        self.timed(Op::Count, self.store.unknown_outcomes()).await
    }

    pub(crate) async fn get(&self, key: &RecordKey) -> Result<Option<crate::store::entry::Entry>, StoreError> {
        self.timed(Op::Get, self.store.get(key)).await
    }

    /// Returns `error` as the error of a busy store, unless a read shows that the store is unreachable. A write also
    /// fails if the process was paused, others hold a lock, or the server takes no writes. A failed read proves nothing
    /// if this process cannot open a connection.
    pub(crate) async fn look_after(&self, error: StoreError, key: &RecordKey) -> StoreError {
        match self.get(key).await {
            Err(look) if look.is_unreachable() && !shortage::lacks_files() => error,
            Ok(_) | Err(_) => error.into_busy(),
        }
    }

    #[cfg(feature = "inspector")]
    pub(crate) async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.timed(Op::Purge, self.store.purge(key)).await
    }

    #[cfg(feature = "operate")]
    pub(crate) async fn resolve(
        &self,
        key: &RecordKey,
        token: Token,
        resolution: crate::store::resolution::Resolution,
    ) -> Result<crate::store::resolution::Resolved, StoreError> {
        self.timed(Op::Resolve, self.store.resolve(key, token, resolution)).await
    }

    /// Has no limit, because a listing may take longer than a request can wait.
    #[cfg(feature = "inspector")]
    pub(crate) async fn list(
        &self,
        cursor: Option<crate::store::entry::Cursor>,
        limit: usize,
    ) -> Result<crate::store::entry::Page, StoreError> {
        self.store.list(cursor, limit).await
    }

    /// Has no limit, like [`list`](Self::list).
    #[cfg(feature = "inspector")]
    pub(crate) async fn claims(
        &self,
        cursor: Option<crate::store::entry::Cursor>,
        limit: usize,
    ) -> Result<Option<crate::store::entry::Page>, StoreError> {
        self.store.claims(cursor, limit).await
    }

    /// Repeats a call that fails, until it succeeds or the limit for one call has passed, but at least once: the first
    /// call may have failed because of a short load. An entry that cannot be read and a rejected record are not tried
    /// again.
    pub(crate) async fn persistently<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(200));
        let mut retries = Retries::until(Deadline::after(self.limit()), backoff).at_least_one();
        loop {
            let answer = call().await;
            let is_final = matches!(answer, Ok(_) | Err(StoreError::Damaged(_) | StoreError::RecordRejected(_)));
            if is_final || !retries.pause().await {
                return answer;
            }
        }
    }

    /// Cancels `call` when the limit has passed.
    pub(crate) async fn timed<T>(
        &self,
        op: Op,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.meter.measure(op, self.in_line(&self.line, op, call)).await
    }

    /// Does the same as [`timed`](Self::timed) for a call that begins a transaction.
    #[cfg(feature = "__transactions")]
    pub(crate) async fn timed_begin<T>(
        &self,
        op: Op,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.meter.measure(op, self.in_line(&self.transaction_line, op, call)).await
    }

    async fn in_line<T>(
        &self,
        line: &Arc<WaitingLine>,
        op: Op,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let (limit, begun) = (self.limit(), Instant::now());
        let (ahead, sent) = (line.held_back(), line.sent());
        let too_long = || held_up(line, begun, LineTooLong { ahead, limit });
        // A handler that runs must be recorded, so only claims are rejected.
        let is_claim = matches!(op, Op::Claim);
        if is_claim && line.is_too_long(ahead, limit) {
            return Err(too_long());
        }
        let this = Call::of(line);
        let _withdrawn = Withdrawn(&this);
        let deadline = Deadline::after(limit);
        let mut asking = pin!(Arc::clone(&this).scope(call));
        let in_time = poll_fn(|cx| {
            // The turn came too late. If the call began now, it would be cancelled and its connection closed.
            if deadline.is_over() && this.withdraw() {
                return Poll::Ready(Err(held_up(line, begun, NoTurn(limit))));
            }
            asking.as_mut().poll(cx)
        });
        let mut answering = pin!(deadline.bound(in_time));
        // The pace of the line may become known only while the call waits. Each check delays the calls that are served.
        for pause in [limit / 2, limit / 4] {
            if !is_claim || ahead < SHORT {
                break;
            }
            if let Some(answer) = Deadline::after(pause).bound(&mut answering).await {
                return result_of(line, &this, answer, begun);
            }
            let left = ahead.saturating_sub(line.sent().wrapping_sub(sent));
            if line.is_too_long(left, limit.saturating_sub(begun.elapsed())) && this.withdraw() {
                return Err(too_long());
            }
        }
        result_of(line, &this, answering.await, begun)
    }
}

/// The number of waiting calls from which on a call checks whether the store can still serve it in time.
const SHORT: usize = 64;

/// Converts the answer. A call that was never sent had no effect, even if its store says otherwise.
fn result_of<T>(
    line: &WaitingLine,
    call: &Call,
    answer: Option<Result<T, StoreError>>,
    begun: Instant,
) -> Result<T, StoreError> {
    if let Some(Ok(_)) = answer {
        line.answered();
    }
    match answer {
        Some(Err(StoreError::Unavailable(source))) => Err(match source.downcast::<Waited>() {
            Ok(waited) if call.withdraw() => held_up(line, begun, waited.0),
            Ok(waited) if line.is_moving(begun) => StoreError::busy(waited.0),
            Ok(waited) => StoreError::Unavailable(waited),
            Err(source) if call.withdraw() => StoreError::NotSent(source),
            Err(source) => StoreError::Unavailable(source),
        }),
        Some(answer) => answer,
        None if call.withdraw() => Err(held_up(line, begun, NoTurn(line.limit()))),
        None if line.is_moving(begun) => Err(StoreError::busy(NoAnswer(line.limit()))),
        None => Err(StoreError::TimedOut(line.limit())),
    }
}

/// Returns the error of a call that was never sent. A store that answers other calls is busy, not unreachable.
fn held_up(
    line: &WaitingLine,
    begun: Instant,
    reason: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    if line.is_moving(begun) { StoreError::busy_not_sent(reason) } else { StoreError::not_sent(Waited(reason.into())) }
}

#[derive(Debug, thiserror::Error)]
#[error("{ahead} calls wait for the store, more than it takes within {limit:?}")]
struct LineTooLong {
    ahead: usize,
    limit: Duration,
}

#[derive(Debug, thiserror::Error)]
#[error("the call waited for its turn for {0:?}")]
struct NoTurn(Duration);

#[derive(Debug, thiserror::Error)]
#[error("the store answers other calls, and has not answered this one within {0:?}")]
struct NoAnswer(Duration);

/// A store that needs no limit because it answers at once.
pub(crate) struct Immediate<'a> {
    store: &'a dyn ImmediateStore,
    meter: &'a StoreMeter,
}

impl Immediate<'_> {
    pub(crate) fn complete(
        &self,
        key: &RecordKey,
        token: Token,
        record: &Record,
        ttl: Duration,
    ) -> Result<Held, StoreError> {
        self.meter.measure_now(Op::Complete, || self.store.complete_now(key, token, record, ttl))
    }
}
