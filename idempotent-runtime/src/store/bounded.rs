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
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::contract::ImmediateStore;
use crate::store::erased::ErasedStore;
use crate::store::error::{StoreError, Waited};
use crate::store::line::{Call, WaitingLine, Withdrawn};
use crate::store::shortage;
use crate::sync::tokio::time::Instant;
use crate::transaction::transactions::Transactions;

/// A call that hangs is cut off and counts as unreachable.
pub(crate) struct BoundedStore {
    name: Box<str>,
    store: Arc<dyn ErasedStore>,
    limit: Duration,
    meter: StoreMeter,
    line: Arc<WaitingLine>,
    /// The line of calls that wait for a transaction. Handlers hold transactions for as long as they run, so the pace of this line says
    /// nothing about other calls.
    #[cfg_attr(not(feature = "__transactions"), allow(dead_code, reason = "there are no transactions"))]
    transaction_line: Arc<WaitingLine>,
}

impl BoundedStore {
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

    /// How long one call may take.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// The same store, if it answers at once.
    pub(crate) fn immediate(&self) -> Option<Immediate<'_>> {
        Some(Immediate { store: self.store.immediate()?, meter: &self.meter })
    }

    /// The answer to a claim, if it is there without waiting.
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
        self.bounded(Op::Claim, self.store.claim(key, request)).await
    }

    pub(crate) async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        self.bounded(Op::Renew, self.store.renew(key, token, lease)).await
    }

    /// One answer for each renewal, or one error if the store renewed nothing within this time.
    pub(crate) async fn renew_many(
        &self,
        renewals: &[Renewal],
        within: Duration,
    ) -> Result<Vec<Result<Held, StoreError>>, StoreError> {
        let renewing = async {
            let mut answers = self.store.renew_many(renewals).await;
            if answers.iter().all(Result::is_err) {
                // The first one speaks for all.
                return answers.swap_remove(0).map(|_| Vec::new());
            }
            Ok(answers)
        };
        let in_time = async {
            let renewed = Deadline::after(within).bound(renewing).await;
            renewed.unwrap_or(Err(StoreError::TimedOut(within)))
        };
        self.bounded(Op::Renew, in_time).await
    }

    pub(crate) async fn complete(
        &self,
        key: &RecordKey,
        token: Token,
        record: Record,
        ttl: Duration,
    ) -> Result<Held, StoreError> {
        self.bounded(Op::Complete, self.store.complete(key, token, record, ttl)).await
    }

    pub(crate) async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        self.bounded(Op::Release, self.store.release(key, token)).await
    }

    /// Keeps the record of a step.
    pub(crate) async fn extend(&self, key: &RecordKey, ttl: Duration) -> Result<Held, StoreError> {
        self.bounded(Op::Renew, self.store.extend(key, ttl)).await
    }

    /// Without a limit: the waiter has one.
    pub(crate) async fn changed(&self, key: &RecordKey) {
        self.store.changed(key).await;
    }

    pub(crate) fn transactions(&self) -> Option<Transactions> {
        self.store.transactions()
    }

    /// Whether a handler's transaction holds the key, so far as the store can tell: it has no row.
    pub(crate) async fn is_in_transaction(&self, key: &RecordKey) -> Result<bool, StoreError> {
        match self.transactions() {
            Some(transactions) => self.bounded(Op::Get, transactions.holder.holds(key)).await,
            None => Ok(false),
        }
    }

    #[cfg(feature = "metrics")]
    pub(crate) async fn unknown_outcomes(&self) -> Result<crate::store::entry::UnknownOutcomes, StoreError> {
        self.bounded(Op::Count, self.store.unknown_outcomes()).await
    }

    pub(crate) async fn get(&self, key: &RecordKey) -> Result<Option<crate::store::entry::Entry>, StoreError> {
        self.bounded(Op::Get, self.store.get(key)).await
    }

    /// An error of a call that writes proves nothing: no answer may have come because the process was paused or others hold a
    /// lock, and a server that answers may take no writes. A look that reads only tells whether the store can be asked; it tells
    /// nothing if this process cannot open a connection.
    pub(crate) async fn look_after(&self, error: StoreError, key: &RecordKey) -> StoreError {
        match self.get(key).await {
            Err(look) if look.is_unreachable() && !shortage::lacks_files() => error,
            Ok(_) | Err(_) => error.into_busy(),
        }
    }

    #[cfg(feature = "inspector")]
    pub(crate) async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.bounded(Op::Purge, self.store.purge(key)).await
    }

    #[cfg(feature = "operate")]
    pub(crate) async fn resolve(
        &self,
        key: &RecordKey,
        token: Token,
        resolution: crate::store::resolution::Resolution,
    ) -> Result<crate::store::resolution::Resolved, StoreError> {
        self.bounded(Op::Resolve, self.store.resolve(key, token, resolution)).await
    }

    /// Without a limit: a listing may take longer than a request can wait.
    #[cfg(feature = "inspector")]
    pub(crate) async fn list(
        &self,
        cursor: Option<crate::store::entry::Cursor>,
        limit: usize,
    ) -> Result<crate::store::entry::Page, StoreError> {
        self.store.list(cursor, limit).await
    }

    /// As [`list`](Self::list).
    #[cfg(feature = "inspector")]
    pub(crate) async fn claims(
        &self,
        cursor: Option<crate::store::entry::Cursor>,
        limit: usize,
    ) -> Result<Option<crate::store::entry::Page>, StoreError> {
        self.store.claims(cursor, limit).await
    }

    /// Repeats a call that fails until it succeeds, as long as one that hangs would take, but at least once: a call that hung
    /// may have met a moment of load. What cannot be read, or is too large, stays so.
    pub(crate) async fn persistently<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let deadline = Deadline::after(self.limit());
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(200));
        let mut is_first = true;
        loop {
            match call().await {
                Err(error)
                    if !matches!(error, StoreError::Damaged(_) | StoreError::RecordRejected(_))
                        && (deadline.outlasts(backoff.peek()) || std::mem::take(&mut is_first)) =>
                {
                    backoff.wait().await;
                }
                answer => return answer,
            }
        }
    }

    /// Cuts `call` off when the limit is over.
    pub(crate) async fn bounded<T>(
        &self,
        op: Op,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.meter.measure(op, self.in_line(&self.line, op, call)).await
    }

    /// The same for a call that begins a transaction.
    #[cfg(feature = "__transactions")]
    pub(crate) async fn bounded_begin<T>(
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
        // What runs already must be recorded: only what has not begun is turned away.
        let is_claim = matches!(op, Op::Claim);
        if is_claim && line.is_too_long(ahead, limit) {
            return Err(too_long());
        }
        let this = Call::of(line);
        let _withdrawn = Withdrawn(&this);
        let deadline = Deadline::after(limit);
        let mut asking = pin!(Arc::clone(&this).scope(call));
        let in_time = poll_fn(|cx| {
            // Its turn has come too late: begun only to be cut off, it would take its connection along.
            if deadline.is_over() && this.withdraw() {
                return Poll::Ready(Err(held_up(line, begun, NoTurn(limit))));
            }
            asking.as_mut().poll(cx)
        });
        let mut answering = pin!(deadline.bound(in_time));
        // How long the line takes may show only while the call waits. Each look of many that wait costs those that are served.
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

/// If so many calls wait in front of it, a call looks whether it can still be served in time.
const SHORT: usize = 64;

/// A call that was never sent had no effect, also if its store reports another error.
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

/// A call that was never sent: a store that answers others is not unreachable, whatever makes it slow.
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
