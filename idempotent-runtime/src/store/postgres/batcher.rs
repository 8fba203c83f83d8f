//! Operations of many callers that go out as one statement.
//!
//! While [`UNDER_WAY`] statements are under way, further operations gather in a queue. When one of the statements is answered, a
//! waiting caller sends the queued operations as one statement. If there are fewer callers, each caller sends a statement for its
//! own operation at once and does not wait for other callers. On a machine of its own, PostgreSQL serves a few small statements
//! side by side faster than one larger statement.
//!
//! A batch is sent by a task that no caller owns. The task ends when the batch is answered, or when all its callers have stopped
//! waiting. If the batch has no answer for an operation, the caller sends that operation in a statement of its own. If PostgreSQL
//! rejects the batch, no operation has taken effect, and the cause may be only one of them. So each caller then sends its own.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::PgRow;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::deadline::Deadline;
use crate::store::error::StoreError;
use crate::store::line::Call;
use crate::store::postgres::failure::{is_rejected, store_error};
use crate::store::postgres::own::OwnConnection;
use crate::store::postgres::pools::Pools;
use crate::store::postgres::statements::{Query, Statement};
use crate::sync::{Mutex, RuntimeId, current_runtime, lock};

/// The number of statements for one kind of operation that are under way before further operations gather. It is lower for a small
/// pool: at most half of the pool's connections.
const UNDER_WAY: usize = 4;

/// The largest number of operations in one statement. Each claim takes a lock, and PostgreSQL has 64 locks for each connection.
const MOST: usize = 32;

/// An operation with more bytes is sent in a statement of its own.
pub(super) const LARGEST: usize = 64 * 1024;

/// A batch with this many bytes takes no further operation.
const MOST_BYTES: usize = 1024 * 1024;

/// How long an operation waits for the statements under way. They may wait for a lock, or for an answer that never arrives.
const PATIENCE: Duration = Duration::from_millis(5);

/// One operation.
pub(super) trait Batched: Send + Sync + Sized + 'static {
    type Answer: Send + 'static;

    /// Whether the operation waits for its turn before it takes a connection ([`Pools::turn`]).
    const IN_TURN: bool;

    /// The digest of the operation's key. A statement has each key once, for the first of its operations.
    fn digest(&self) -> &[u8; 32];

    /// The approximate number of bytes that the operation adds to the statement.
    fn bytes(&self) -> usize;

    /// Adds the parameters of the statement. The statement notifies waiting requests over `channel`.
    fn bind(batch: &[Arc<Self>], query: Query, channel: &str) -> Query;

    /// Returns the answer for another operation with the same key that waited in the queue, if it needs no statement of its own.
    fn answer_of_another(answer: &Self::Answer) -> Option<Self::Answer>;

    /// Returns an answer for each operation. An operation without an answer is sent in a statement of its own.
    fn answers(batch: &[Arc<Self>], rows: &[PgRow]) -> Result<Vec<Option<Self::Answer>>, sqlx::Error>;
}

/// Returns the index of the operation with this digest. A batch is sorted by digest.
pub(super) fn place_of<B: Batched>(batch: &[Arc<B>], digest: &[u8]) -> Option<usize> {
    batch.binary_search_by(|operation| operation.digest()[..].cmp(digest)).ok()
}

/// The right to send a statement. While the permit is kept, further operations gather.
pub(super) struct Lead {
    pub(super) connection: OwnConnection,
    _turn: Option<OwnedSemaphorePermit>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// The result of submitting an operation.
pub(super) enum Outcome<A> {
    Answered(A),
    /// The operation has had no effect. Its caller sends it, over this connection if there is one.
    Alone(Option<Lead>),
    /// The answer was lost. The operation may have taken effect.
    Lost(Arc<sqlx::Error>),
}

pub(super) struct Batcher<B: Batched> {
    pools: Arc<Pools>,
    statement: Statement,
    channel: String,
    permits: Arc<Semaphore>,
    /// Whether the last statement had one operation. Then the next caller does not wait for other operations to gather.
    was_alone: AtomicBool,
    queue: Mutex<Queue<B>>,
}

struct Queue<B: Batched> {
    waiting: BTreeMap<u64, Job<B>>,
    next_number: u64,
}

struct Job<B: Batched> {
    number: u64,
    operation: Arc<B>,
    call: Option<Arc<Call>>,
    /// All callers of a batch belong to one runtime, because the threads of another runtime may be blocked.
    runtime: Option<RuntimeId>,
    reply: oneshot::Sender<Outcome<B::Answer>>,
    /// Later operations with the same key. They are not sent, and are answered with this one.
    others: Vec<Self>,
}

impl<B: Batched> Batcher<B> {
    pub(super) fn new(pools: Arc<Pools>, statement: Statement, channel: String) -> Arc<Self> {
        let queue = Mutex::new(Queue { waiting: BTreeMap::new(), next_number: 0 });
        let connections = pools.application().options().get_max_connections() as usize;
        let permits = Arc::new(Semaphore::new((connections / 2).clamp(1, UNDER_WAY)));
        Arc::new(Self { pools, statement, channel, permits, was_alone: AtomicBool::new(true), queue })
    }

    /// Sends the operation in a batch, unless its caller withdraws `call` first.
    ///
    /// # Errors
    ///
    /// If there is no connection. Then the operation was not sent.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the operation is sent, the operation is never sent. If it is dropped later, the operation
    /// may take effect.
    pub(super) async fn submit(
        self: &Arc<Self>,
        operation: &Arc<B>,
        call: Option<Arc<Call>>,
    ) -> Result<Outcome<B::Answer>, StoreError> {
        if let Some(permit) = self.permit_at_once() {
            return Ok(Outcome::Alone(Some(Lead { _permit: Some(permit), ..self.connect().await? })));
        }
        let mut queued = self.enqueue(operation, call);
        loop {
            let lead = tokio::select! {
                biased;
                outcome = &mut queued.outcome => return Ok(outcome.unwrap_or_else(|_| lost_with_its_task())),
                lead = self.lead(queued.number) => lead,
            };
            let lead = match lead {
                Ok(lead) => lead,
                Err(error) if queued.leave() => return Err(error),
                // Another caller has sent the operation in the meantime.
                Err(_) => continue,
            };
            let batch = self.take(queued.number);
            let is_alone = matches!(&batch[..], [job] if job.others.is_empty());
            if !batch.is_empty() {
                self.was_alone.store(is_alone, Ordering::Relaxed);
            }
            match &batch[..] {
                [] => {}
                [job] if is_alone && job.number == queued.number => return Ok(Outcome::Alone(Some(lead))),
                _ => drop(tokio::spawn(Arc::clone(self).send(batch, lead))),
            }
        }
    }

    /// Takes a connection for a statement that is not a batch.
    pub(super) async fn connect(&self) -> Result<Lead, StoreError> {
        let turn = if B::IN_TURN { Some(self.pools.turn().await?) } else { None };
        let connection = self.pools.own().acquire().await.map_err(store_error)?;
        Ok(Lead { connection, _turn: turn, _permit: None })
    }

    /// Returns a permit without waiting if there are few callers: no other operation waits, and the last statement had only one.
    fn permit_at_once(&self) -> Option<OwnedSemaphorePermit> {
        let is_alone = self.was_alone.load(Ordering::Relaxed) && lock(&self.queue).waiting.is_empty();
        if is_alone { Arc::clone(&self.permits).try_acquire_owned().ok() } else { None }
    }

    async fn lead(&self, number: u64) -> Result<Lead, StoreError> {
        let permit = Deadline::after(PATIENCE).bound(Arc::clone(&self.permits).acquire_owned()).await;
        if !lock(&self.queue).waiting.contains_key(&number) {
            // Another caller has sent the operation.
            drop(permit);
            return pending().await;
        }
        let lead = Lead { _permit: permit.and_then(Result::ok), ..self.connect().await? };
        // Other tasks that became ready at the same time can add their operations first.
        tokio::task::yield_now().await;
        Ok(lead)
    }

    fn enqueue(&self, operation: &Arc<B>, call: Option<Arc<Call>>) -> Queued<'_, B> {
        let (reply, outcome) = oneshot::channel();
        let mut queue = lock(&self.queue);
        queue.next_number += 1;
        let number = queue.next_number;
        let (operation, runtime) = (Arc::clone(operation), current_runtime());
        let job = Job { number, operation, call, runtime, reply, others: Vec::new() };
        queue.waiting.insert(number, job);
        Queued { batcher: self, number, outcome }
    }

    /// Takes the operations of the next statement from the queue. They are sorted by digest, so that two processes do not wait for
    /// each other's rows. The operation `own` of the caller is taken on any runtime: a request may continue on another one than the
    /// one on which it joined the queue.
    fn take(&self, own: u64) -> Vec<Job<B>> {
        let runtime = current_runtime();
        let (mut batch, mut left, mut bytes) = (BTreeMap::<_, Job<B>>::new(), BTreeMap::new(), 0);
        let mut queue = lock(&self.queue);
        while batch.len() < MOST
            && bytes < MOST_BYTES
            && let Some((number, job)) = queue.waiting.pop_first()
        {
            if job.runtime != runtime && number != own {
                left.insert(number, job);
                continue;
            }
            if !job.goes_out() {
                continue;
            }
            match batch.entry(*job.operation.digest()) {
                Entry::Vacant(place) => {
                    bytes += job.operation.bytes();
                    place.insert(job);
                }
                Entry::Occupied(mut first) => first.get_mut().others.push(job),
            }
        }
        queue.waiting.append(&mut left);
        batch.into_values().collect()
    }

    async fn send(self: Arc<Self>, mut batch: Vec<Job<B>>, mut lead: Lead) {
        let operations: Vec<Arc<B>> = batch.iter().map(|job| Arc::clone(&job.operation)).collect();
        let answers = async {
            let query = B::bind(&operations, self.statement.query(), &self.channel);
            B::answers(&operations, &lead.connection.fetch_all(query).await?)
        };
        let answers = tokio::select! {
            biased;
            answers = answers => answers,
            // The answer may never arrive. A connection that is dropped before its answer is closed.
            () = all_gone(&mut batch) => return,
        };
        drop(lead);
        match answers {
            Ok(answers) => {
                for (job, answer) in batch.into_iter().zip(answers) {
                    job.settle(answer.map_or(Outcome::Alone(None), Outcome::Answered));
                }
            }
            Err(error) if had_no_effect(&error) => batch.into_iter().for_each(|job| job.settle(Outcome::Alone(None))),
            Err(error) => {
                let error = Arc::new(error);
                for job in batch {
                    job.settle(Outcome::Lost(Arc::clone(&error)));
                }
            }
        }
    }
}

/// A place in the queue. The operation leaves the queue when this is dropped.
struct Queued<'a, B: Batched> {
    batcher: &'a Batcher<B>,
    number: u64,
    outcome: oneshot::Receiver<Outcome<B::Answer>>,
}

impl<B: Batched> Queued<'_, B> {
    /// Removes the operation from the queue. Returns whether it was still there.
    fn leave(&self) -> bool {
        lock(&self.batcher.queue).waiting.remove(&self.number).is_some()
    }
}

impl<B: Batched> Drop for Queued<'_, B> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<B: Batched> Job<B> {
    /// Marks the operation as sent. Returns false if its caller has withdrawn it or no longer waits.
    fn goes_out(&self) -> bool {
        !self.reply.is_closed() && self.call.as_ref().is_none_or(|call| call.send())
    }

    /// Gives the outcome to the caller, and to the callers of the other operations with the same key. A caller that no longer waits
    /// sends the operation again, or releases the claim that it may have.
    fn settle(self, outcome: Outcome<B::Answer>) {
        for other in self.others {
            let answer = match &outcome {
                Outcome::Answered(answer) => B::answer_of_another(answer),
                Outcome::Alone(_) | Outcome::Lost(_) => None,
            };
            let _ = other.reply.send(answer.map_or(Outcome::Alone(None), Outcome::Answered));
        }
        let _ = self.reply.send(outcome);
    }
}

/// Resolves when no caller of the batch waits any more.
async fn all_gone<B: Batched>(batch: &mut [Job<B>]) {
    for job in batch {
        job.reply.closed().await;
        for other in &mut job.others {
            other.reply.closed().await;
        }
    }
}

/// Returns whether PostgreSQL has rejected the statement, or the statement was not sent.
fn had_no_effect(error: &sqlx::Error) -> bool {
    is_rejected(error) || matches!(error, sqlx::Error::Encode(_))
}

/// The outcome for a caller whose batch has lost its task. The task ended with its runtime, or it panicked.
fn lost_with_its_task<A>() -> Outcome<A> {
    let reason = "the task that sent the statement has ended";
    Outcome::Lost(Arc::new(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, reason))))
}
