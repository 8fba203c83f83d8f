//! The operations that wait to go out together, and the permits to send them.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::store::batch::sending::Sending;
use crate::store::line::Call;
use crate::sync::{Mutex, RuntimeId, current_runtime, lock};

/// How long an operation waits for the calls under way. They may wait for a lock, or for an answer that never arrives.
pub(super) const PATIENCE: Duration = Duration::from_millis(5);

/// The right to have one of the calls under way. When it is dropped, it is free, and the first waiting caller is told.
pub(super) struct Permit(Arc<dyn GiveBack>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// A queue, whatever its operations are.
trait GiveBack: Send + Sync {
    /// Makes one more permit free.
    fn give_back(&self);
}

/// A session for a call. While the permit is kept, further operations gather.
pub(crate) struct Lead<S> {
    pub(crate) session: S,
    pub(super) permit: Option<Permit>,
}

/// The result of submitting an operation.
pub(crate) enum Outcome<S: Sending> {
    Answered(S::Answer),
    /// The operation may be sent by its caller, within this session if there is one.
    Alone(Option<Lead<S::Session>>),
    /// The answer was lost. The operation may have taken effect.
    Lost(Arc<S::Error>),
}

pub(super) struct BatchQueue<S: Sending>(Mutex<State<S>>);

struct State<S: Sending> {
    /// The operations in the order of their numbers.
    waiting: VecDeque<Job<S>>,
    next_number: u64,
    /// The number of free permits.
    permits: usize,
    /// Whether the last batch had one operation. Then the next caller does not wait for other operations to gather.
    was_alone: bool,
}

impl<S: Sending> State<S> {
    fn position(&self, number: u64) -> Option<usize> {
        self.waiting.binary_search_by_key(&number, |job| job.number).ok()
    }

    /// Returns whether a new caller may take a permit. It takes none from a caller that waits and was told, unless that one is late:
    /// its thread may be blocked.
    fn may_pass(&self) -> bool {
        self.waiting.iter().all(|job| job.turn.is_some_and(|told| told.elapsed() > PATIENCE))
    }

    fn take_permit(&mut self) -> bool {
        let has_permit = self.permits > 0;
        self.permits -= usize::from(has_permit);
        has_permit
    }

    /// Returns the first operation whose caller has no turn.
    fn next(&mut self) -> Option<&mut Job<S>> {
        self.waiting.iter_mut().find(|job| job.turn.is_none())
    }

    /// Begins the turn of the first caller that waits, if a permit is free. The caller takes the permit itself when it is polled:
    /// its thread may be blocked, and then another caller can take the permit.
    fn begin_turn(&mut self) {
        if self.permits == 0 {
            return;
        }
        while let Some(job) = self.next() {
            job.turn = Some(Instant::now());
            let (sender, reply) = oneshot::channel();
            // The caller of an operation that cannot be told is about to take it out of the queue.
            if mem::replace(&mut job.reply, sender).send(Reply::Turn(reply)).is_ok() {
                return;
            }
        }
    }
}

/// An operation that waits, or that is in a batch.
pub(super) struct Job<S: Sending> {
    number: u64,
    pub(super) operation: Arc<S::Operation>,
    call: Option<Arc<Call>>,
    /// All callers of a batch belong to one runtime, because the threads of another runtime may be blocked.
    runtime: Option<RuntimeId>,
    reply: oneshot::Sender<Reply<S>>,
    /// When the caller was told to send the queue, until it has done so.
    turn: Option<Instant>,
    /// Later operations with the same place. They are not sent, and are answered with this one.
    others: Vec<Self>,
}

/// What a waiting caller is told.
pub(super) enum Reply<S: Sending> {
    Outcome(Outcome<S>),
    /// It is to send the queue, if a permit is still free. The next reply comes by another channel.
    Turn(oneshot::Receiver<Self>),
}

/// How a caller has joined.
pub(super) enum Joined<S: Sending> {
    /// It sends its own operation.
    Alone(Permit),
    /// It waits, or sends the queue if it has a permit.
    Waiting(Queued<S>, Option<Permit>),
}

impl<S: Sending> BatchQueue<S> {
    /// Returns an empty queue with this number of permits.
    pub(super) fn new(permits: usize) -> Arc<Self> {
        let state = State { waiting: VecDeque::new(), next_number: 0, permits, was_alone: true };
        Arc::new(Self(Mutex::new(state)))
    }

    /// Takes a permit and a place in the queue. No place is needed if there are few callers: no other operation waits, and the last
    /// batch had only one.
    pub(super) fn join(self: &Arc<Self>, operation: &Arc<S::Operation>, call: Option<Arc<Call>>) -> Joined<S> {
        let mut queue = lock(&self.0);
        let has_permit = queue.may_pass() && queue.take_permit();
        let is_alone = has_permit && queue.was_alone && queue.waiting.is_empty();
        if is_alone {
            return Joined::Alone(self.permit());
        }
        let (sender, reply) = oneshot::channel();
        queue.next_number += 1;
        let number = queue.next_number;
        let (operation, runtime) = (Arc::clone(operation), current_runtime());
        let others = Vec::new();
        let turn = has_permit.then(Instant::now);
        queue.waiting.push_back(Job { number, operation, call, runtime, reply: sender, turn, others });
        drop(queue);
        Joined::Waiting(Queued { queue: Arc::clone(self), number, reply }, has_permit.then(|| self.permit()))
    }

    /// Takes the operations of the next batch from the queue, sorted by place. The operation `own` of the caller is taken on any
    /// runtime: a request may continue on another one than the one on which it joined the queue.
    pub(super) fn take(&self, own: Option<u64>, bytes_of: impl Fn(&S::Operation) -> usize) -> Vec<Job<S>> {
        let runtime = current_runtime();
        let (mut batch, mut left, mut bytes) = (Vec::<(S::Place, Job<S>)>::new(), Vec::new(), 0);
        let mut queue = lock(&self.0);
        while batch.len() < S::MOST
            && bytes < S::MOST_BYTES
            && let Some(job) = queue.waiting.pop_front()
        {
            if job.runtime != runtime && Some(job.number) != own {
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
                    bytes += bytes_of(&job.operation);
                    batch.insert(position, (place, job));
                }
            }
        }
        left.into_iter().rev().for_each(|job| queue.waiting.push_front(job));
        // The turn is over, even if the batch had no room for this operation.
        if let Some(own) = own.and_then(|own| queue.position(own)) {
            queue.waiting[own].turn = None;
        }
        if let [(_, job), others @ ..] = &batch[..] {
            queue.was_alone = others.is_empty() && job.is_alone();
        }
        queue.begin_turn();
        drop(queue);
        batch.into_iter().map(|(_, job)| job).collect()
    }

    /// Returns whether the next operation is one of this runtime. Otherwise the permit goes to a caller on another runtime, so that no
    /// runtime keeps all permits.
    pub(super) fn is_next(&self) -> bool {
        let runtime = current_runtime();
        lock(&self.0).next().is_some_and(|job| job.runtime == runtime)
    }

    /// Takes a permit if one is free.
    pub(super) fn free_permit(self: &Arc<Self>) -> Option<Permit> {
        lock(&self.0).take_permit().then(|| self.permit())
    }

    fn permit(self: &Arc<Self>) -> Permit {
        Permit(Arc::clone(self) as Arc<dyn GiveBack>)
    }
}

impl<S: Sending> GiveBack for BatchQueue<S> {
    fn give_back(&self) {
        let mut queue = lock(&self.0);
        queue.permits += 1;
        queue.begin_turn();
    }
}

/// A place in the queue. The operation leaves the queue when this is dropped.
pub(super) struct Queued<S: Sending> {
    queue: Arc<BatchQueue<S>>,
    number: u64,
    pub(super) reply: oneshot::Receiver<Reply<S>>,
}

impl<S: Sending> Queued<S> {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn is_of(&self, job: &Job<S>) -> bool {
        self.number == job.number
    }

    pub(super) fn still_waits(&self) -> bool {
        lock(&self.queue.0).position(self.number).is_some()
    }

    /// Begins the caller's turn. Returns the permit, unless another caller has taken it.
    pub(super) fn begin_turn(&mut self, reply: oneshot::Receiver<Reply<S>>) -> Option<Permit> {
        self.reply = reply;
        let permit = self.queue.free_permit();
        let mut queue = lock(&self.queue.0);
        if permit.is_none()
            && let Some(position) = queue.position(self.number)
        {
            queue.waiting[position].turn = None;
            queue.begin_turn();
        }
        permit
    }

    /// Removes the operation from the queue. Returns whether it was still there. If the caller has not begun its turn, the next one
    /// does.
    pub(super) fn leave(&self) -> bool {
        let mut queue = lock(&self.queue.0);
        let position = queue.position(self.number);
        let left = position.and_then(|position| queue.waiting.remove(position));
        queue.begin_turn();
        left.is_some()
    }
}

impl<S: Sending> Drop for Queued<S> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<S: Sending> Job<S> {
    /// Returns whether no other operation has its place in the batch.
    pub(super) fn is_alone(&self) -> bool {
        self.others.is_empty()
    }

    /// Marks the operation as sent. Returns false if its caller has withdrawn it or no longer waits.
    fn goes_out(&self) -> bool {
        !self.reply.is_closed() && self.call.as_ref().is_none_or(|call| call.send())
    }

    /// Gives the outcome to the caller, and to the callers of the other operations with the same place. A caller that no longer waits
    /// sends the operation again, or releases the claim that it may have.
    pub(super) fn settle(self, outcome: Outcome<S>) {
        for other in self.others {
            let answer = match &outcome {
                Outcome::Answered(answer) => S::answer_of_another(answer),
                Outcome::Alone(_) | Outcome::Lost(_) => None,
            };
            let _ = other.reply.send(Reply::Outcome(answer.map_or(Outcome::Alone(None), Outcome::Answered)));
        }
        let _ = self.reply.send(Reply::Outcome(outcome));
    }

    /// Resolves when no caller waits for the operation any more.
    pub(super) async fn gone(&mut self) {
        self.reply.closed().await;
        for other in &mut self.others {
            other.reply.closed().await;
        }
    }
}
