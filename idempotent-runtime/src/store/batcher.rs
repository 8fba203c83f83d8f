//! Operations of many callers that go out together: as one statement, one script or one pipeline.
//!
//! While [`Sending::under_way`] calls are under way, further operations gather in a queue. When one of the calls is answered, the
//! queued operations are sent together. If there are fewer callers, each caller sends its own operation at once and does not wait
//! for other callers.
//!
//! A task that no caller owns takes the operations of its runtime from the queue and sends them. It is spawned for the first
//! operation that waits, and ends when none is left. So a caller waits only for its answer, and a caller that is not polled holds
//! up no other.
//!
//! The task of a batch ends when the batch is answered, or when all its callers have stopped waiting. If the batch has no answer for
//! an operation, the caller sends that operation in a call of its own. If the server rejects the batch, the cause may be only one of
//! the operations, and sending an operation again does no harm. So each caller then sends its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::deadline::Deadline;
use crate::store::error::StoreError;
use crate::store::line::Call;
use crate::store::sending::Sending;
use crate::sync::{Mutex, RuntimeId, current_runtime, lock};

/// How long an operation waits for the calls under way. They may wait for a lock, or for an answer that never arrives.
const PATIENCE: Duration = Duration::from_millis(5);

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
    /// The runtimes that have a task which sends their operations. Every operation in the queue has one.
    drivers: Vec<Option<RuntimeId>>,
}

impl<S: Sending> Queue<S> {
    fn position(&self, number: u64) -> Option<usize> {
        self.waiting.binary_search_by_key(&number, |job| job.number).ok()
    }

    /// Returns the number of the first operation of this runtime.
    fn next_of(&self, runtime: Option<RuntimeId>) -> Option<u64> {
        self.waiting.iter().find(|job| job.runtime == runtime).map(|job| job.number)
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
        let queue = Mutex::new(Queue { waiting: VecDeque::new(), next_number: 0, drivers: Vec::new() });
        let permits = Arc::new(Semaphore::new(sending.under_way()));
        Arc::new(Self { sending, permits, was_alone: AtomicBool::new(true), queue })
    }

    /// Sends the operation in a batch, unless its caller withdraws `call` first.
    ///
    /// # Errors
    ///
    /// If there is no session for an operation that need not wait. Then the operation was not sent.
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
        Ok((&mut queued.outcome).await.unwrap_or_else(|_| lost()))
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

    fn enqueue(self: &Arc<Self>, operation: &Arc<S::Operation>, call: Option<Arc<Call>>) -> Queued<'_, S> {
        let (reply, outcome) = oneshot::channel();
        let (operation, runtime) = (Arc::clone(operation), current_runtime());
        let mut queue = lock(&self.queue);
        queue.next_number += 1;
        let number = queue.next_number;
        queue.waiting.push_back(Job { number, operation, call, runtime, reply, others: Vec::new() });
        let has_driver = queue.drivers.contains(&runtime);
        if !has_driver {
            queue.drivers.push(runtime);
        }
        drop(queue);
        if !has_driver {
            drop(tokio::spawn(Driver { batcher: Arc::clone(self), runtime, is_over: false }.drive()));
        }
        Queued { batcher: self, number, outcome }
    }

    /// Takes the operations of the next batch from the queue, sorted by place. `driver` is over if the queue has no further
    /// operation of its runtime.
    fn take(&self, driver: &mut Driver<S>) -> Vec<Job<S>> {
        let (mut batch, mut left, mut bytes) = (Vec::<(S::Place, Job<S>)>::new(), Vec::new(), 0);
        let mut queue = lock(&self.queue);
        while batch.len() < S::MOST
            && bytes < S::MOST_BYTES
            && let Some(job) = queue.waiting.pop_front()
        {
            if job.runtime != driver.runtime {
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
        driver.is_over = queue.next_of(driver.runtime).is_none();
        if driver.is_over {
            queue.drivers.retain(|runtime| *runtime != driver.runtime);
        }
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

/// The task that sends the operations of one runtime.
struct Driver<S: Sending> {
    batcher: Arc<Batcher<S>>,
    runtime: Option<RuntimeId>,
    is_over: bool,
}

impl<S: Sending> Driver<S> {
    async fn drive(mut self) {
        let batcher = Arc::clone(&self.batcher);
        while !self.is_over {
            let last = lock(&batcher.queue).next_number;
            let permits = Arc::clone(&batcher.permits);
            let mut permit = Deadline::after(PATIENCE).bound(permits.acquire_owned()).await.and_then(Result::ok);
            let is_late = permit.is_none();
            // The operations that have waited for so long are sent without a permit.
            while !self.is_over {
                // If there is no session, each caller begins one of its own, and gets the error of that.
                let Ok(lead) = batcher.connect().await else { return };
                // Tasks that became ready at the same time can add their operations first.
                tokio::task::yield_now().await;
                self.send_next(Lead { _permit: permit.take(), ..lead }).await;
                if !is_late || lock(&batcher.queue).next_of(self.runtime).is_none_or(|next| next > last) {
                    break;
                }
            }
        }
    }

    async fn send_next(&mut self, lead: Lead<S::Session>) {
        let batcher = Arc::clone(&self.batcher);
        let mut batch = batcher.take(self);
        if batch.is_empty() {
            return;
        }
        let is_alone = matches!(&batch[..], [job] if job.others.is_empty());
        batcher.was_alone.store(is_alone, Ordering::Relaxed);
        if is_alone {
            batch.remove(0).settle(Outcome::Alone(Some(lead)));
        } else if self.is_over {
            batcher.send(batch, lead).await;
        } else {
            drop(tokio::spawn(batcher.send(batch, lead)));
        }
    }
}

/// If the task ends with its runtime, or has no session, a caller may continue on another runtime. Its operation was not sent.
impl<S: Sending> Drop for Driver<S> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut queue = lock(&self.batcher.queue);
        queue.drivers.retain(|runtime| *runtime != self.runtime);
        let (ours, others) = queue.waiting.drain(..).partition(|job| job.runtime == self.runtime);
        queue.waiting = others;
        drop(queue);
        let ours: VecDeque<Job<S>> = ours;
        for job in ours {
            job.settle(Outcome::Alone(None));
        }
    }
}

/// A place in the queue. The operation leaves the queue when this is dropped.
struct Queued<'a, S: Sending> {
    batcher: &'a Batcher<S>,
    number: u64,
    outcome: oneshot::Receiver<Outcome<S>>,
}

impl<S: Sending> Drop for Queued<'_, S> {
    fn drop(&mut self) {
        let mut queue = lock(&self.batcher.queue);
        if let Some(position) = queue.position(self.number) {
            let _ = queue.waiting.remove(position);
        }
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
