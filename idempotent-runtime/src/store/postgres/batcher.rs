//! Operations of many callers that go out as one statement.
//!
//! While [`UNDER_WAY`] statements are under way, further operations gather. When one of the statements has been answered, a waiting
//! caller sends all that have gathered. With fewer callers, each sends the statement for one operation at once, and waits for no
//! other: on a machine of its own, PostgreSQL serves a few small statements side by side faster than one larger statement.
//!
//! A batch belongs to no caller: its task ends when it is answered, or when all its callers have gone. What it cannot answer,
//! each caller sends alone. A batch that PostgreSQL rejects has no effect, and the reason may be one operation of many.

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

/// The statements for one kind of operation that are under way before further operations gather. In a small pool fewer, at most half
/// of its connections.
const UNDER_WAY: usize = 4;

/// The operations in one statement, at most. Each claim takes a lock, of which PostgreSQL has 64 for each connection.
const MOST: usize = 32;

/// A larger operation goes out alone, and a batch of more bytes takes no further one.
pub(super) const LARGEST: usize = 64 * 1024;
const MOST_BYTES: usize = 1024 * 1024;

/// How long an operation waits for the statements under way. They may wait for a lock, or for an answer that never comes.
const PATIENCE: Duration = Duration::from_millis(5);

/// One operation.
pub(super) trait Batched: Send + Sync + Sized + 'static {
    type Answer: Send + 'static;

    /// Whether it takes a connection only in its turn ([`Pools::turn`]).
    const IN_TURN: bool;

    /// Of its key. A statement has each key once.
    fn digest(&self) -> &[u8; 32];

    /// Roughly what it adds to the statement.
    fn bytes(&self) -> usize;

    /// Adds the parameters of the statement, which notifies requests that wait over `channel`.
    fn bind(batch: &[Arc<Self>], query: Query, channel: &str) -> Query;

    /// One for each operation. An operation without an answer goes out alone.
    fn answers(batch: &[Arc<Self>], rows: &[PgRow]) -> Result<Vec<Option<Self::Answer>>, sqlx::Error>;
}

/// The place of the operation with this digest. A batch is sorted.
pub(super) fn place_of<B: Batched>(batch: &[Arc<B>], digest: &[u8]) -> Option<usize> {
    batch.binary_search_by(|operation| operation.digest()[..].cmp(digest)).ok()
}

/// The right to send a statement. While the permit is kept, further operations gather.
pub(super) struct Lead {
    pub(super) connection: OwnConnection,
    _turn: Option<OwnedSemaphorePermit>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// What has become of an operation.
pub(super) enum Outcome<A> {
    Answered(A),
    /// It has had no effect: its caller sends it, over this connection if there is one.
    Alone(Option<Lead>),
    /// The answer was lost. It may have taken effect.
    Lost(Arc<sqlx::Error>),
}

pub(super) struct Batcher<B: Batched> {
    pools: Arc<Pools>,
    statement: Statement,
    channel: String,
    permits: Arc<Semaphore>,
    /// Whether the last statement had one operation. Then the next caller does not wait for others to gather.
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
    /// A batch has callers of one runtime: the threads of another one may be blocked.
    runtime: Option<RuntimeId>,
    reply: oneshot::Sender<Outcome<B::Answer>>,
}

impl<B: Batched> Batcher<B> {
    pub(super) fn new(pools: Arc<Pools>, statement: Statement, channel: String) -> Arc<Self> {
        let queue = Mutex::new(Queue { waiting: BTreeMap::new(), next_number: 0 });
        let connections = pools.application().options().get_max_connections() as usize;
        let permits = Arc::new(Semaphore::new((connections / 2).clamp(1, UNDER_WAY)));
        Arc::new(Self { pools, statement, channel, permits, was_alone: AtomicBool::new(true), queue })
    }

    /// Has the operation sent, unless its caller withdraws `call` before.
    ///
    /// # Errors
    ///
    /// If there is no connection: then it was not sent.
    ///
    /// # Cancel safety
    ///
    /// An operation that was not sent never will be. One that was goes to its end.
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
                // Another caller has sent it meanwhile.
                Err(_) => continue,
            };
            let batch = self.take();
            if !batch.is_empty() {
                self.was_alone.store(batch.len() == 1, Ordering::Relaxed);
            }
            match &batch[..] {
                [] => {}
                [job] if job.number == queued.number => return Ok(Outcome::Alone(Some(lead))),
                _ => drop(tokio::spawn(Arc::clone(self).send(batch, lead))),
            }
        }
    }

    /// A connection for a statement beside the batches.
    pub(super) async fn connect(&self) -> Result<Lead, StoreError> {
        let turn = if B::IN_TURN { Some(self.pools.turn().await?) } else { None };
        let connection = self.pools.own().acquire().await.map_err(store_error)?;
        Ok(Lead { connection, _turn: turn, _permit: None })
    }

    /// A permit without waiting, if few callers come: no other operation waits, and none came with the last one.
    fn permit_at_once(&self) -> Option<OwnedSemaphorePermit> {
        let is_alone = self.was_alone.load(Ordering::Relaxed) && lock(&self.queue).waiting.is_empty();
        if is_alone { Arc::clone(&self.permits).try_acquire_owned().ok() } else { None }
    }

    async fn lead(&self, number: u64) -> Result<Lead, StoreError> {
        let permit = Deadline::after(PATIENCE).bound(Arc::clone(&self.permits).acquire_owned()).await;
        if !lock(&self.queue).waiting.contains_key(&number) {
            // Its statement is under way.
            drop(permit);
            return pending().await;
        }
        let lead = Lead { _permit: permit.and_then(Result::ok), ..self.connect().await? };
        // Callers that were woken together come together.
        tokio::task::yield_now().await;
        Ok(lead)
    }

    fn enqueue(&self, operation: &Arc<B>, call: Option<Arc<Call>>) -> Queued<'_, B> {
        let (reply, outcome) = oneshot::channel();
        let mut queue = lock(&self.queue);
        queue.next_number += 1;
        let number = queue.next_number;
        let job = Job { number, operation: Arc::clone(operation), call, runtime: current_runtime(), reply };
        queue.waiting.insert(number, job);
        Queued { batcher: self, number, outcome }
    }

    /// The operations of the next statement, sorted by digest, so that two processes do not wait for each other's rows.
    fn take(&self) -> Vec<Job<B>> {
        let runtime = current_runtime();
        let (mut batch, mut left, mut bytes) = (BTreeMap::new(), BTreeMap::new(), 0);
        let mut queue = lock(&self.queue);
        while batch.len() < MOST
            && bytes < MOST_BYTES
            && let Some((number, job)) = queue.waiting.pop_first()
        {
            match batch.entry(*job.operation.digest()) {
                Entry::Vacant(place) if job.runtime == runtime => {
                    if job.goes_out() {
                        bytes += job.operation.bytes();
                        place.insert(job);
                    }
                }
                _ => _ = left.insert(number, job),
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
            // The answer may never come. A connection that is dropped without one is closed.
            () = all_gone(&mut batch) => return,
        };
        drop(lead);
        let lost = match answers {
            Ok(answers) => {
                for (job, answer) in batch.into_iter().zip(answers) {
                    job.settle(answer.map_or(Outcome::Alone(None), Outcome::Answered));
                }
                return;
            }
            Err(error) if had_no_effect(&error) => None,
            Err(error) => Some(Arc::new(error)),
        };
        for job in batch {
            job.settle(lost.clone().map_or(Outcome::Alone(None), Outcome::Lost));
        }
    }
}

/// A place in the queue, which its caller leaves when it no longer waits.
struct Queued<'a, B: Batched> {
    batcher: &'a Batcher<B>,
    number: u64,
    outcome: oneshot::Receiver<Outcome<B::Answer>>,
}

impl<B: Batched> Queued<'_, B> {
    /// Whether the operation was still waiting.
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
    /// False if its caller has withdrawn it, or no longer waits.
    fn goes_out(&self) -> bool {
        !self.reply.is_closed() && self.call.as_ref().is_none_or(|call| call.send())
    }

    /// A caller that no longer waits will ask again, or end what it may have got.
    fn settle(self, outcome: Outcome<B::Answer>) {
        let _ = self.reply.send(outcome);
    }
}

async fn all_gone<B: Batched>(batch: &mut [Job<B>]) {
    for job in batch {
        job.reply.closed().await;
    }
}

/// Whether PostgreSQL has rejected the statement, or it was not sent.
fn had_no_effect(error: &sqlx::Error) -> bool {
    is_rejected(error) || matches!(error, sqlx::Error::Encode(_))
}

/// The runtime of the batch's task has ended, and the task with it.
fn lost_with_its_task<A>() -> Outcome<A> {
    let reason = "the runtime that sent the statement has ended";
    Outcome::Lost(Arc::new(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, reason))))
}
