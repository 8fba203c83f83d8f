//! Operations of many callers that go out together: as one statement, one script or one pipeline.
//!
//! While [`Sending::under_way`] calls are under way, further operations gather in a queue. When one of the calls is answered, a
//! waiting caller sends the queued operations together. If there are fewer callers, each caller sends its own operation at once
//! and does not wait for other callers.
//!
//! A batch is sent by a task that no caller owns. The task ends when the batch is answered, or when all its callers have stopped
//! waiting. If the batch has no answer for an operation, the caller sends that operation in a call of its own. If the server
//! rejects the batch, the cause may be only one of the operations, and sending an operation again does no harm. So each caller
//! then sends its own.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::deadline::Deadline;
use crate::store::error::StoreError;
use crate::store::line::Call;
use crate::sync::{Mutex, RuntimeId, current_runtime, lock};

/// How long an operation waits for the calls under way. They may wait for a lock, or for an answer that never arrives.
const PATIENCE: Duration = Duration::from_millis(5);

/// How operations of one kind are sent.
pub(super) trait Sending: Send + Sync + 'static {
    type Operation: Send + Sync + 'static;

    type Answer: Send + 'static;

    /// What a call needs before it can be sent, such as a connection.
    type Session: Send + 'static;

    type Error: Send + Sync + 'static;

    /// The place of an operation in a batch. Each place is taken once, by the first of its operations.
    type Place: Ord;

    /// The largest number of operations in one batch.
    const MOST: usize;

    /// A batch with this many bytes takes no further operation.
    const MOST_BYTES: usize;

    /// Returns the number of calls that are under way before further operations gather.
    fn under_way(&self) -> usize;

    /// Returns the place of the operation that joined the queue with this number.
    fn place(operation: &Self::Operation, number: u64) -> Self::Place;

    /// Returns the approximate number of bytes that the operation adds to the batch.
    fn bytes(&self, operation: &Self::Operation) -> usize;

    /// Waits for what the next call needs.
    fn session(&self) -> impl Future<Output = Result<Self::Session, StoreError>> + Send;

    /// Sends the operations, which are sorted by place. Returns an answer for each of them. An operation without an answer is sent
    /// in a call of its own.
    fn send(
        &self,
        batch: &[Arc<Self::Operation>],
        session: &mut Self::Session,
    ) -> impl Future<Output = Result<Vec<Option<Self::Answer>>, Self::Error>> + Send;

    /// Returns whether the server has rejected the batch, or the batch was not sent, so that each operation may be sent by itself.
    fn is_rejected(error: &Self::Error) -> bool;

    /// Returns the error of a batch whose task ended before the answer, together with its runtime or by a panic.
    fn lost_with_its_task() -> Self::Error;

    /// Returns the answer for another operation with the same place that waited in the queue, if it needs no call of its own.
    fn answer_of_another(answer: &Self::Answer) -> Option<Self::Answer>;
}

/// The right to send a call. While the permit is kept, further operations gather.
pub(super) struct Lead<S> {
    pub(super) session: S,
    _permit: Option<OwnedSemaphorePermit>,
}

/// The result of submitting an operation.
pub(super) enum Outcome<S: Sending> {
    Answered(S::Answer),
    /// The operation may be sent by its caller, within this session if there is one.
    Alone(Option<Lead<S::Session>>),
    /// The answer was lost. The operation may have taken effect.
    Lost(Arc<S::Error>),
}

pub(super) struct Batcher<S: Sending> {
    sending: S,
    permits: Arc<Semaphore>,
    /// Whether the last batch had one operation. Then the next caller does not wait for other operations to gather.
    was_alone: AtomicBool,
    queue: Mutex<Queue<S>>,
}

struct Queue<S: Sending> {
    /// The operations in the order of their numbers.
    waiting: VecDeque<Job<S>>,
    next_number: u64,
}

impl<S: Sending> Queue<S> {
    fn position(&self, number: u64) -> Option<usize> {
        self.waiting.binary_search_by_key(&number, |job| job.number).ok()
    }
}

struct Job<S: Sending> {
    number: u64,
    operation: Arc<S::Operation>,
    call: Option<Arc<Call>>,
    /// All callers of a batch belong to one runtime, because the threads of another runtime may be blocked.
    runtime: Option<RuntimeId>,
    reply: oneshot::Sender<Outcome<S>>,
    /// Later operations with the same place. They are not sent, and are answered with this one.
    others: Vec<Self>,
}

impl<S: Sending> Batcher<S> {
    pub(super) fn new(sending: S) -> Arc<Self> {
        let queue = Mutex::new(Queue { waiting: VecDeque::new(), next_number: 0 });
        let permits = Arc::new(Semaphore::new(sending.under_way()));
        Arc::new(Self { sending, permits, was_alone: AtomicBool::new(true), queue })
    }

    /// Sends the operation in a batch, unless its caller withdraws `call` first.
    ///
    /// # Errors
    ///
    /// If there is no session. Then the operation was not sent.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the operation is sent, the operation is never sent. If it is dropped later, the operation
    /// may take effect.
    pub(super) async fn submit(
        self: &Arc<Self>,
        operation: &Arc<S::Operation>,
        call: Option<Arc<Call>>,
    ) -> Result<Outcome<S>, StoreError> {
        if let Some(permit) = self.permit_at_once() {
            return Ok(Outcome::Alone(Some(Lead { _permit: Some(permit), ..self.connect().await? })));
        }
        let mut queued = self.enqueue(operation, call);
        loop {
            let lead = tokio::select! {
                biased;
                outcome = &mut queued.outcome => return Ok(outcome.unwrap_or_else(|_| lost())),
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

    #[cfg(feature = "redis")]
    pub(super) fn sending(&self) -> &S {
        &self.sending
    }

    /// Begins a session for a call that is not a batch.
    pub(super) async fn connect(&self) -> Result<Lead<S::Session>, StoreError> {
        Ok(Lead { session: self.sending.session().await?, _permit: None })
    }

    /// Returns a permit without waiting if there are few callers: no other operation waits, and the last batch had only one.
    fn permit_at_once(&self) -> Option<OwnedSemaphorePermit> {
        let is_alone = self.was_alone.load(Ordering::Relaxed) && lock(&self.queue).waiting.is_empty();
        if is_alone { Arc::clone(&self.permits).try_acquire_owned().ok() } else { None }
    }

    async fn lead(&self, number: u64) -> Result<Lead<S::Session>, StoreError> {
        let permit = Deadline::after(PATIENCE).bound(Arc::clone(&self.permits).acquire_owned()).await;
        if lock(&self.queue).position(number).is_none() {
            // Another caller has sent the operation.
            drop(permit);
            return pending().await;
        }
        let lead = Lead { _permit: permit.and_then(Result::ok), ..self.connect().await? };
        // Other tasks that became ready at the same time can add their operations first.
        tokio::task::yield_now().await;
        Ok(lead)
    }

    fn enqueue(&self, operation: &Arc<S::Operation>, call: Option<Arc<Call>>) -> Queued<'_, S> {
        let (reply, outcome) = oneshot::channel();
        let mut queue = lock(&self.queue);
        queue.next_number += 1;
        let number = queue.next_number;
        let (operation, runtime) = (Arc::clone(operation), current_runtime());
        let job = Job { number, operation, call, runtime, reply, others: Vec::new() };
        queue.waiting.push_back(job);
        Queued { batcher: self, number, outcome }
    }

    /// Takes the operations of the next batch from the queue, sorted by place. The operation `own` of the caller is taken on any
    /// runtime: a request may continue on another one than the one on which it joined the queue.
    fn take(&self, own: u64) -> Vec<Job<S>> {
        let runtime = current_runtime();
        let (mut batch, mut left, mut bytes) = (Vec::<(S::Place, Job<S>)>::new(), Vec::new(), 0);
        let mut queue = lock(&self.queue);
        while batch.len() < S::MOST
            && bytes < S::MOST_BYTES
            && let Some(job) = queue.waiting.pop_front()
        {
            if job.runtime != runtime && job.number != own {
                left.push(job);
                continue;
            }
            if !job.goes_out() {
                continue;
            }
            let place = S::place(&job.operation, job.number);
            match batch.binary_search_by(|(other, _)| other.cmp(&place)) {
                Ok(first) => batch[first].1.others.push(job),
                Err(position) => {
                    bytes += self.sending.bytes(&job.operation);
                    batch.insert(position, (place, job));
                }
            }
        }
        left.into_iter().rev().for_each(|job| queue.waiting.push_front(job));
        drop(queue);
        batch.into_iter().map(|(_, job)| job).collect()
    }

    async fn send(self: Arc<Self>, mut batch: Vec<Job<S>>, mut lead: Lead<S::Session>) {
        let operations: Vec<_> = batch.iter().map(|job| Arc::clone(&job.operation)).collect();
        let answers = tokio::select! {
            biased;
            answers = self.sending.send(&operations, &mut lead.session) => answers,
            // The answer may never arrive. A session that is dropped before its answer ends.
            () = all_gone(&mut batch) => return,
        };
        drop(lead);
        match answers {
            Ok(answers) => {
                for (job, answer) in batch.into_iter().zip(answers) {
                    job.settle(answer.map_or(Outcome::Alone(None), Outcome::Answered));
                }
            }
            Err(error) if S::is_rejected(&error) => batch.into_iter().for_each(|job| job.settle(Outcome::Alone(None))),
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
struct Queued<'a, S: Sending> {
    batcher: &'a Batcher<S>,
    number: u64,
    outcome: oneshot::Receiver<Outcome<S>>,
}

impl<S: Sending> Queued<'_, S> {
    /// Removes the operation from the queue. Returns whether it was still there.
    fn leave(&self) -> bool {
        let mut queue = lock(&self.batcher.queue);
        let position = queue.position(self.number);
        position.is_some_and(|position| queue.waiting.remove(position).is_some())
    }
}

impl<S: Sending> Drop for Queued<'_, S> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<S: Sending> Job<S> {
    /// Marks the operation as sent. Returns false if its caller has withdrawn it or no longer waits.
    fn goes_out(&self) -> bool {
        !self.reply.is_closed() && self.call.as_ref().is_none_or(|call| call.send())
    }

    /// Gives the outcome to the caller, and to the callers of the other operations with the same place. A caller that no longer waits
    /// sends the operation again, or releases the claim that it may have.
    fn settle(self, outcome: Outcome<S>) {
        for other in self.others {
            let answer = match &outcome {
                Outcome::Answered(answer) => S::answer_of_another(answer),
                Outcome::Alone(_) | Outcome::Lost(_) => None,
            };
            let _ = other.reply.send(answer.map_or(Outcome::Alone(None), Outcome::Answered));
        }
        let _ = self.reply.send(outcome);
    }
}

/// Resolves when no caller of the batch waits any more.
async fn all_gone<S: Sending>(batch: &mut [Job<S>]) {
    for job in batch {
        job.reply.closed().await;
        for other in &mut job.others {
            other.reply.closed().await;
        }
    }
}

/// The outcome for a caller whose batch has lost its task.
fn lost<S: Sending>() -> Outcome<S> {
    Outcome::Lost(Arc::new(S::lost_with_its_task()))
}
